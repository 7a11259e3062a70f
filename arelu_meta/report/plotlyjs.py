"""Plotly's code for a page, of which a page starts only the kinds of chart that it can hold."""

import re
from functools import cache

KINDS = ("heatmap", "scatter")  # of plotly's traces, all that charts.py makes
_IN_THE_CORE = ("scatter",)
_STARTED = re.compile(r"(?<=\.register\(\[)\w+\(\)(?:,\w+\(\))+(?=\]\))")
_MODULE = re.compile(r"(\w+)=\w+\(\((?:\w+(?:,\w+)?)?\)=>\{")
_FAR = 5_000  # characters from a module's start; a kind of chart names itself sooner


@cache
def plotly_script() -> str:
    """Return plotly.js as the installed package carries it, to be put into a script element.

    Its bundle starts some fifty kinds of chart where it is loaded, which takes a browser longer than all the rest.
    Here the list of what is started names the kinds of a page alone. In a bundle that is built otherwise, nothing is
    changed: it starts slower and draws the same.

    Returns:
        The code, about 4.8 MB.
    """
    from plotly.offline import get_plotlyjs

    # A browser reads one line ending for another, and the policy's sum is over what it read.
    return starting_only(re.sub(r"\r\n?", "\n", str(get_plotlyjs())), KINDS).replace("</script", r"<\/script")


def starting_only(bundle: str, kinds: tuple[str, ...]) -> str:
    """Leave out of a bundle's list of what is started all but some kinds of chart.

    Args:
        bundle: plotly.js, minified.
        kinds: plotly's names of traces.

    Returns:
        The bundle with a shorter list; as it was where that list or one of the kinds was not found in it.
    """
    lists = list(_STARTED.finditer(bundle))
    if len(lists) != 1:
        return bundle
    given = lists[0].group().split(",")
    kept = [f"{_module_of(kind, bundle)}()" for kind in kinds if kind not in _IN_THE_CORE]
    if not set(kept) <= set(given):
        return bundle
    return bundle[: lists[0].start()] + ",".join(kept) + bundle[lists[0].end() :]


def _module_of(kind: str, bundle: str) -> str | None:
    """Find the module that the list names for a kind of chart: it passes on another one, which says its kind."""
    own = _last_module(bundle, bundle.find(f'moduleType:"trace",name:"{kind}"'))
    return _last_module(bundle, bundle.find(f"exports={own}()}}"))


def _last_module(bundle: str, before: int) -> str | None:
    found = _MODULE.findall(bundle, max(0, before - _FAR), before) if before > 0 else []
    return found[-1] if found else None
