"""Write the page of the command line from the tasks' dataclasses, as `--help` does."""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from docstring_parser import parse
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from arelu_meta.cli import TASKS
from arelu_meta.config import Settings
from arelu_meta.validation import describe_type


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add command-line.md."""
    files.append(File.generated(config, "command-line.md", content=command_line_page()))
    return files


def command_line_page() -> str:
    """Return the page in Markdown: the tasks, then each group of flags with who reads it."""
    groups: dict[type[Settings], dict[str, list[str]]] = {}
    for name, task in TASKS.items():
        _collect(task.config, "", name, groups)
    lines = [
        "# Command line",
        "",
        "Generated from the dataclasses of `arelu_meta/config.py`, which are the flags, the YAML keys and the fields"
        " in Python. `arelu-meta TASK --help` prints a task's own; `--config FILE` reads them from YAML, and flags"
        " override it. Where one field alone has a name, its last part is enough: `--lr 0.01` for `--optim.lr 0.01`.",
        "",
        "| task | what it does |",
        "| --- | --- |",
        *(f"| `arelu-meta {name}` | {_cell(task.help)} |" for name, task in TASKS.items()),
    ]
    for kind, uses in groups.items():
        for prefix, tasks in uses.items():
            lines += [
                "",
                f"## {prefix.rstrip('.') or tasks[0]}: {', '.join(tasks)}",
                "",
                _summary(kind),
                "",
                *_table(kind, prefix),
            ]
    return "\n".join(lines)


def _collect(kind: type[Settings], prefix: str, task: str, groups: dict[type[Settings], dict[str, list[str]]]) -> None:
    hints = get_type_hints(kind)
    own = [item for item in fields(kind) if not is_dataclass(hints[item.name])]
    if own:
        groups.setdefault(kind, {}).setdefault(prefix, []).append(task)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            _collect(hints[item.name], f"{prefix}{item.name}.", task, groups)


def _summary(kind: type[Settings]) -> str:
    return parse(inspect.getdoc(kind) or "").short_description or ""


def _table(kind: type[Settings], prefix: str) -> list[str]:
    helps = {one.arg_name: one.description or "" for one in parse(inspect.getdoc(kind) or "").params}
    hints = get_type_hints(kind)
    lines = ["| flag | default | allowed | what it is |", "| --- | --- | --- | --- |"]
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            continue
        default = "required" if item.default is MISSING and item.default_factory is MISSING else f"`{_default(item)}`"
        allowed = item.metadata.get("words") or describe_type(hints[item.name])
        lines.append(f"| `--{prefix}{item.name}` | {default} | {_cell(allowed)} | {_cell(helps.get(item.name, ''))} |")
    return lines


def _default(item: Any) -> object:
    return item.default if item.default is not MISSING else item.default_factory()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
