"""Measuring speed and memory: contenders in turns, medians, ratios to a peer in the same round."""
