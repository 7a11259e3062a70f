"""A model shared out over the processes of a run (FSDP): each keeps its part of the weights, gradients and optimiser.

Everything here that takes a model which is shared out talks to the other processes: all of them call it together.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_meta.backbones.checkpoint import ModelSpec
from arelu_meta.config import FinetuneConfig
from arelu_meta.data.loaders import Batches, InputSpec
from arelu_meta.errors import InputError
from arelu_meta.finetuning.metrics import predict_logits
from arelu_meta.runs.distributed import Ranks

SMALLEST_UNIT = 1_000_000  # parameters; less than that costs more messages than it saves memory
# Whose step on a part of a tensor is part of the step on the whole: the others take norms, or factors of matrices.
_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "rmsprop", "adagrad", "lion")


def check_sharding(config: FinetuneConfig, ranks: Ranks) -> None:
    """Refuse what does not go with train.shard.

    Args:
        config: of the run.
        ranks: its processes.

    Raises:
        InputError: naming the other field, or because there is nobody to share with.
    """
    train, optim = config.train, config.optim
    if not train.shard:
        return
    if ranks.processes == 1:
        raise InputError(
            "train.shard: true shares a model out over several processes, and this run has one; start it with torchrun "
            "(configs/launch/README.md), or leave it out"
        )
    if config.data.batch_size < ranks.processes:
        raise InputError(
            f"data.batch_size: {config.data.batch_size} images are not enough for {ranks.processes} processes, which "
            "step together where train.shard is true; give at least as many"
        )
    learns_all = train.mode in ("full", "activations") or train.mode.startswith("last-")
    refused = {
        f"train.mode {train.mode}": not learns_all,
        "train.ema": train.ema is not None,
        "train.compile": train.compile,
        "train.channels_last": train.channels_last is True,
        "optim.lr auto": optim.lr == "auto",
        "run.precision fp16": config.run.precision == "fp16",
    }
    if name := next((name for name, given in refused.items() if given), None):
        raise InputError(f"train.shard: true does not go with {name}; leave one of them out")
    if optim.name.lower() not in _OPTIMIZERS:
        allowed = ", ".join(_OPTIMIZERS)
        raise InputError(f"optim.name: {optim.name!r} does not go with train.shard; give one of {allowed}")


class Shards:
    """A model that is shared out, and the whole of it as of the last `gather`.

    Args:
        model: whole, the same in every process; changed in place: its parameters become parts of themselves.
        ranks: the processes.

    Raises:
        InputError: if the processes cannot average gradients.

    Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        _check_averaging(ranks)
        self.model, self.ranks = model, ranks
        model.cpu()  # from where each unit is fetched by itself: the device never holds the whole beside the parts
        self.whole = copy.deepcopy(model) if ranks.main else None
        mesh = init_device_mesh(ranks.device.type, (ranks.processes,))
        model.register_forward_pre_hook(_share_statistics)
        for unit in (*units(model, SMALLEST_UNIT), model):
            fully_shard(unit, mesh=mesh)

    def gather(self) -> nn.Module:
        """Put the whole model together, on the first process's CPU.

        Returns:
            There the whole model, elsewhere the part of this process.
        """
        state = gathered(self.model.state_dict(), self.ranks.main)
        if self.whole is None:
            return self.model
        self.whole.load_state_dict(state)
        return self.whole

    def cut_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cut whole weights as the model is shared out.

        Args:
            tensors: by name; one that does not fit stays whole, for `load_tensors` to refuse.
        """
        own = self.model.state_dict()
        return {name: _cut_as(own.get(name), value) for name, value in tensors.items()}

    def cut_state(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Cut a checkpoint's weights and optimiser as they are shared out here.

        Args:
            state: of a checkpoint, whole.
            optimizer: of this run.
        """
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        cut = {
            index: {name: _cut_as(own[index], value) for name, value in values.items()}
            for index, values in state["optimizer"]["state"].items()
        }
        return {
            **state,
            "model": self.cut_weights(state["model"]),
            "optimizer": {**state["optimizer"], "state": cut},
        }

    def check(self, spec: ModelSpec, device: torch.device) -> None:
        """Run the model once, so that one whose parts do not come together is refused before anything is written.

        Args:
            spec: of the model.
            device: where.

        Raises:
            InputError: if a part of the model is used outside of the modules that own it.
        """
        try:
            predict_logits(self.model, [_example(spec.inputs)], device)
        except RuntimeError as error:
            if "DTensor" not in str(error):
                raise
            raise InputError(
                f"train.shard: true, and {spec.name!r} uses a layer's weights without the layer, so that it cannot be "
                "shared out; leave it out"
            ) from error

    def catch_up(self, batches: Batches) -> None:
        """Run the model as often as the processes do that had more batches of a validation.

        Args:
            batches: which this process has gone through.
        """
        rank = batches.order.share[0]
        for whole in batches.order.batches():
            if len(whole) <= rank:
                predict_logits(self.model, [next(iter(batches.epoch(0)))], self.ranks.device)


def _check_averaging(ranks: Ranks) -> None:
    """Refuse a library that adds gradients up where it is asked for their mean, as torch 2.7's gloo does in silence."""
    ones, mean = torch.ones(ranks.processes, device=ranks.device), torch.zeros(1, device=ranks.device)
    # Newer torch has another name for it, and warns of the old one.
    name = "reduce_scatter_single" if hasattr(torch.distributed, "reduce_scatter_single") else "reduce_scatter_tensor"
    getattr(torch.distributed, name)(mean, ones, op=torch.distributed.ReduceOp.AVG)
    if mean.item() != 1:
        raise InputError(
            f"train.shard: true needs processes that average gradients, and those of torch {torch.__version__} on "
            f"{ranks.device.type} add them up; use a GPU or a newer torch"
        )


def _example(inputs: InputSpec) -> tuple[Tensor, Tensor]:
    side = inputs.image_size
    return torch.zeros(1, inputs.channels, side, side), torch.zeros(1, dtype=torch.int64)


def units(model: nn.Module, smallest: int) -> list[nn.Module]:
    """Find what of a model is fetched and let go as one: its blocks.

    Args:
        model: whole.
        smallest: parameters that a unit has at least.

    Returns:
        Members of sequences and lists, inner ones first; one that shares a parameter with the rest is none. What is
        left belongs to the model as a whole.
    """
    everywhere = _references(model)
    blocks = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module.children()
        if not isinstance(child, nn.ModuleList | nn.ModuleDict)
        and sum(parameter.numel() for parameter in child.parameters()) >= smallest
        and all(everywhere[key] == count for key, count in _references(child).items())
    }
    return [module for module in reversed(list(model.modules())) if id(module) in blocks]


def _references(module: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def _share_statistics(model: nn.Module, _: object) -> None:
    """Give every process the first one's running statistics before a step in which they move, as DDP does."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        for buffer in norm.buffers(recurse=False):
            torch.distributed.broadcast(buffer, 0)


def whole_tensor(value: Tensor) -> Tensor:
    """Put a tensor together that may be shared out.

    Args:
        value: a tensor; one that is whole is returned as it is.
    """
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gathered(state: Any, keep: bool = True) -> Any:
    """Put every tensor of a state together, on the CPU.

    Args:
        state: dictionaries, lists, tuples and values, with tensors that may be shared out.
        keep: false drops the tensors, where another process keeps them.

    Returns:
        The same, of plain dictionaries and tensors.
    """
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep) for value in state)
    if isinstance(state, Tensor):
        whole = whole_tensor(state.detach())
        return whole.cpu() if keep else None
    return state


def _cut_as(like: Tensor | None, value: Any) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every process has read the whole: none has to send it.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
