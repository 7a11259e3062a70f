"""Check that a swap with `preserve` moves no output: one forward before it and one after, equal to the bit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arelu_meta.backbones.call_tracing import (
    Example,
    call_with,
    copy_for_forward,
    in_words,
    no_fast_path,
    unchanged_random_state,
)
from arelu_meta.errors import InputError


@dataclass
class Outputs:
    """What a model gave before a swap.

    Args:
        model: a copy of it, which shares its parameters.
        example: what it was given.
        tensors: what it returned, in evaluation mode.
    """

    model: nn.Module
    example: Example
    tensors: list[Tensor]


def outputs_to_preserve(model: nn.Module, example: Example) -> Outputs | str:
    """Run a copy of a model in evaluation mode and keep what it returns.

    Args:
        model: left as it is.
        example: its input.

    Returns:
        The outputs; or why there are none, in a few words.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return "it is on the meta device and has no values"
    try:
        copied = copy_for_forward(model, on_meta=False).eval()
        return Outputs(copied, example, _run(copied, example))
    except Exception as error:  # a stranger's forward may raise anything
        return f"it cannot take the example ({in_words(error)})"


def check_preserved(model: nn.Module, before: Outputs) -> str:
    """Compare what a model gives after a swap with what it gave before.

    Args:
        model: after the swap; left as it is.
        before: its outputs before.

    Returns:
        Why that cannot be told, in a few words; "" if every bit is the same.

    Raises:
        InputError: if a bit has moved; it names the first layer whose output has.
    """
    swapped = copy_for_forward(model, on_meta=False).eval()
    if _are_equal(before.tensors, _run(swapped, before.example)):
        return "" if before.tensors else "it returns no tensor"
    if not _are_equal(before.tensors, _run(before.model, before.example)):
        return "it answers otherwise each time"
    first = _first_that_moved(before.model, swapped, before.example)
    raise InputError(
        f"init: 'preserve' would move the output of {first}; the model is as it was: exclude the activation there, "
        "or give init='paper', which keeps no output"
    )


def _run(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad(), unchanged_random_state(), no_fast_path():
        torch.manual_seed(0)
        return list(_tensors_in(call_with(model, example)))


def _tensors_in(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors_in(value)


def _are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(_is_equal, one, other))


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(_bytes_of(one), _bytes_of(other))


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _first_that_moved(before: nn.Module, after: nn.Module, example: Example) -> str:
    """Name the first layer, in the order of the calls, whose output is another."""
    outputs: list[list[tuple[str, int]]] = [[], []]
    paths = {path for path, module in before.named_modules() if not module._modules}
    paths &= {path for path, _ in after.named_modules()}
    for model, seen in zip((before, after), outputs, strict=True):
        for path, module in model.named_modules():
            if path in paths:
                module.register_forward_hook(_keeper(path, seen))
        _run(model, example)
    for (path, one), (_, other) in zip(*outputs, strict=False):
        if one != other:
            return repr(path)
    return "its last layers"


def _keeper(path: str, seen: list[tuple[str, int]]) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: object, output: object) -> None:
        seen.append((path, hash(tuple(bytes(_bytes_of(one).cpu().numpy()) for one in _tensors_in(output)))))

    return keep
