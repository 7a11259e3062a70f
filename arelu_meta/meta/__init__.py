"""Meta-learn few-shot tasks."""
