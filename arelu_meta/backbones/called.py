"""What a swap does about activations that are called as functions, and what its report says of those that stay."""

from torch import nn

from arelu_meta.backbones.called_once import calls_nothing_twice
from arelu_meta.backbones.examples import Example
from arelu_meta.backbones.hand_written import hand_written
from arelu_meta.backbones.leading import Led, lead_calls, missed, why_kept
from arelu_meta.backbones.mentions import mentions_in_hooks
from arelu_meta.backbones.report import Kept, SwapReport
from arelu_meta.backbones.tracing import Trace, trace_forward
from arelu_meta.backbones.walking import named_modules, tree_changed

Traces = tuple[Trace, Trace]


def trace_and_lead(model: nn.Module, example: Example | None) -> tuple[Traces | None, list[Led]]:
    """Trace a model, lead its function calls to modules, and if there are any, trace it again.

    Where timm's code says by itself that there is nothing to see, it is not run.

    Args:
        model: changed in place; each of what is returned can undo its part.
        example: an input.

    Returns:
        What the forward pass does now, or None if it fails; and the modules that were changed.
    """
    traces = (calls_nothing_twice(model) if example is None else None) or trace_forward(model, example)
    if traces is None:
        return None, []
    led = lead_calls(model, traces)
    if not led:
        return traces, []
    tree_changed(model)
    again = trace_forward(model, example)
    if again is None:  # what is known of the calls is not true of this model
        for one in reversed(led):
            one.undo()
        tree_changed(model)
        return traces, []
    return again, led


def functions_that_stay(model: nn.Module, traces: Traces | None) -> list[Kept]:
    """List the function calls that are left, each with its line and its reason, and the user's own activation classes.

    Args:
        model: any module.
        traces: what its forward pass does; None if that is not known.
    """
    kept: list[Kept] = []
    seen: set[str] = set()
    for call in dict.fromkeys([*traces[0].functions, *traces[1].functions] if traces else []):
        seen.add(call.where)
        refusal = why_kept(model, call)
        reason = f"called as a function in {call.where}: {refusal.why}"
        kept.append(Kept(call.owner, refusal.role, call.function, reason))
    for path, mention, refusal in missed(model, seen):
        reason = f"called as a function in {mention.where}, which the trace did not reach: {refusal.why}"
        kept.append(Kept(path, refusal.role, mention.name, reason))
    hooked = ((p, m) for p, m in named_modules(model) if m._forward_hooks or m._forward_pre_hooks)
    for path, module in hooked:
        for mention in mentions_in_hooks(module):
            if mention.where not in seen:
                kept.append(Kept(path, "hidden", mention.name, f"called as a function in {mention.where}: in a hook"))
    own = hand_written(model)
    whole = {entry.path for entry in own}
    # What such a class calls is a part of it, and stays with it.
    return list(dict.fromkeys([*own, *(entry for entry in kept if entry.path not in whole)]))


def settle(report: SwapReport, led: list[Led]) -> None:
    """Give the modules whose calls were led to activations that all stay their own code back.

    Args:
        report: of the swap; what it says of those calls names their module and their line.
        led: what was changed before the swap.
    """
    swapped = {entry.path for entry in report.swapped}
    for one in reversed(led):
        paths = {f"{one.path}.{target}".removeprefix("."): what for target, what in one.targets.items()}
        if any(path == done or done.startswith(f"{path}.") for path in paths for done in swapped):
            continue
        one.undo()
        for at, entry in enumerate(report.kept):
            if entry.path in paths:
                name, where = paths[entry.path]
                report.kept[at] = Kept(one.path, entry.role, name, f"called as a function in {where}: {entry.reason}")
