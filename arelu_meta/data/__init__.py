"""Labelled images and few-shot episodes."""
