"""Meta-learn few-shot tasks."""

from arelu_meta.meta.run import metatrain

__all__ = ["metatrain"]
