"""Backbones: a timm name, pretrained weights, a head and an activation."""

FINISHERS: dict[str, str] = {}
"""For a task, the function, as module:name, that makes of a saved model's plain backbone what the task saved.

Filled by the package, above all floors: backbones know nothing of what is built on them.
"""
