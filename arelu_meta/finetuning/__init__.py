"""Fine-tune a backbone on labelled images."""

from arelu_meta.finetuning.run import finetune

__all__ = ["finetune"]
