"""Backbones: a timm name, pretrained weights, a head and an activation."""
