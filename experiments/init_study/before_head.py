"""The gates on which nothing but the head depends, read off the graph that autograd builds in one forward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from arelu_meta.activations.arelu import GatedAReLU
from arelu_meta.backbones.call_tracing import (
    Example,
    call_with,
    copy_for_forward,
    example_input,
    in_words,
    without_data,
)
from arelu_meta.errors import InputError


def open_last_gates(model: nn.Module, example: Example | None = None, t: float = 1.0) -> list[GatedAReLU]:
    """Open the gates on which nothing but the head depends: a new head has learned nothing that it could lose.

    A gate qualifies if every parameter on every path from its output to the logits is the head's, or an activation's
    scalar. Where a pretrained layer comes last, as in transformers that end in a norm, no gate does, and all stay shut.

    Args:
        model: with timm's `get_classifier`; without it, every layer counts as pretrained but a last linear one.
        example: an input; default: zeros of the size that the model says it takes, without data.
        t: the gates' new value; 1 over ReLU is AReLU exactly.

    Returns:
        The gates that were opened.

    Raises:
        InputError: if no example is known, or the model cannot take it.
    """
    gates = gates_before_head(model, example)
    with torch.no_grad():
        for gate in gates:
            gate.t.fill_(t)
    return gates


def gates_before_head(model: nn.Module, example: Example | None = None) -> list[GatedAReLU]:
    """Find the gates that `open_last_gates` opens.

    Args:
        model: left as it was.
        example: an input; default: zeros of the size that the model says it takes.

    Raises:
        InputError: if no example is known, or the model cannot take it.
    """
    example = example_input(model) if example is None else example
    if example is None:
        raise InputError(f"example: {type(model).__name__} does not say what it takes; give an input of it")
    failure = ""
    for on_meta in (True, False):
        try:
            copied = copy_for_forward(model, on_meta)
            found = _find(copied, without_data(example) if on_meta else example)
        except Exception as error:  # on the meta device it may lack its values; a stranger's model may raise anything
            failure = in_words(error)
            continue
        paths = {module: path for path, module in copied.named_modules()}
        gates = (model.get_submodule(paths[gate]) for gate in found)
        return [gate for gate in gates if isinstance(gate, GatedAReLU)]
    raise InputError(f"example: the model cannot take it ({failure}); give an input of it")


def _find(model: nn.Module, example: Example) -> list[GatedAReLU]:
    made: dict[GatedAReLU, list[Any]] = {}

    def note(gate: nn.Module, _: object, y: Tensor) -> None:
        assert isinstance(gate, GatedAReLU)
        made.setdefault(gate, []).append(y.grad_fn)

    handles = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, GatedAReLU)]
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        # A frozen parameter would not be in the graph, and is pretrained all the same.
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = call_with(model.eval(), example)  # evaluation leaves running statistics as they are
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for handle in handles:
            handle.remove()
    free = {id(parameter) for head in _heads(model) for parameter in head.parameters()}
    free |= {id(parameter) for gate in made for parameter in gate.parameters(recurse=False)}
    roots = [output.grad_fn for output in tree_leaves(logits) if isinstance(output, Tensor) and output.grad_fn]
    pretrained_after = _pretrained_after(roots, free)
    return [gate for gate, nodes in made.items() if not any(pretrained_after.get(node, True) for node in nodes)]


def _heads(model: nn.Module) -> Sequence[nn.Module]:
    if not hasattr(model, "get_classifier"):
        last = list(model.children())[-1:]
        return [module for module in last if isinstance(module, nn.Linear)]
    heads = model.get_classifier()  # type: ignore[operator]
    return heads if isinstance(heads, tuple | list) else [heads]


def _pretrained_after(roots: Sequence[Any], free: set[int]) -> dict[Any, bool]:
    """Say of every node of a graph whether a parameter that is not free enters between it and the roots.

    Args:
        roots: where the graph begins, at the logits.
        free: ids of the parameters that do not count.
    """
    # A node is settled once all that lead to it are: count those edges first.
    waiting: dict[Any, int] = dict.fromkeys(roots, 0)
    stack = list(waiting)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None:
                if child not in waiting:
                    stack.append(child)
                waiting[child] = waiting.get(child, 0) + 1
    found = dict.fromkeys(waiting, False)
    ready = [node for node in roots if waiting[node] == 0]
    while ready:
        node = ready.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        leaves = [child.variable for child in children if hasattr(child, "variable")]
        after = found[node] or any(isinstance(leaf, nn.Parameter) and id(leaf) not in free for leaf in leaves)
        for child in children:
            found[child] |= after
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    return found
