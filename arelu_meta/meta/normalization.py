"""What batch normalisation does inside an episode, by name.

- `transductive`: statistics of the batch at hand, in training and in test; queries are normalised by each other, so a
  query's class may depend on the other queries. The literature's habit, and the default.
- `running`: as in ordinary training: running averages are updated while meta-training and used in evaluation.
- `frozen`: the running averages that the model came with, never updated; for pretrained backbones.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_meta.errors import InputError, nearest_names

NORMALIZATIONS = ("transductive", "running", "frozen")


def set_normalization(model: nn.Module, mode: str) -> None:
    """Make a model's batch normalisation behave as named, in place.

    Args:
        model: any module; without batch normalisation nothing changes.
        mode: one of `NORMALIZATIONS`.

    Raises:
        InputError: if the mode is unknown.
    """
    if mode not in NORMALIZATIONS:
        raise InputError(f"meta.normalization: {mode!r} is not known; {nearest_names(mode, NORMALIZATIONS)}")
    if mode != "transductive":
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # Without running averages PyTorch normalises by the batch at hand, in eval mode too.
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def train_mode(model: nn.Module, mode: str) -> None:
    """Put a model into training mode, but for what its normalisation keeps frozen.

    Args:
        model: changed in place.
        mode: one of `NORMALIZATIONS`.
    """
    model.train()
    if mode == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
