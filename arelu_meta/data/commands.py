"""`arelu-meta data [NAME]`: where a named set comes from, its layout and terms, and whether it is here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arelu_meta.config import DataConfig, DataTaskConfig
from arelu_meta.data.catalogue import CATALOGUE, NamedSource
from arelu_meta.data.image_folder import class_holders, data_home, find_candidates
from arelu_meta.data.named_datasets import MNIST_M_NEEDS, NAMED_SETS, load_digits, named_root, open_part
from arelu_meta.errors import InputError, counted, nearest_names
from arelu_meta.runs.progress import print_table

if TYPE_CHECKING:
    from arelu_meta.data.fewshot.class_splits import ClassSplits

_PARTS = ("training", "validation", "test")


def data_task(config: DataTaskConfig) -> None:
    """Say where a named set comes from and whether it is here, and fetch it where asked; or list all sets.

    Args:
        config: its name, where it is looked for, and whether it is fetched.

    Raises:
        InputError: if there is no such set, or it cannot be fetched.
    """
    if config.name is None:
        if config.data.fetch:
            raise InputError("data.fetch: true needs a name; give one, as `arelu-meta data mnist --data.fetch true`")
        rows = [[name, source.what.split(":")[0], _had(source), source.size] for name, source in CATALOGUE.items()]
        print_table("data sets by name (`arelu-meta data NAME` says more)", ["name", "what", "how", "download"], rows)
        return
    name = config.name.lower()
    if name not in CATALOGUE:
        instead = nearest_names(name, CATALOGUE)
        raise InputError(f"name: {config.name!r} is no named set; {instead}; a folder of your own goes by --data.root")
    if config.data.fetch:
        _fetch(name, config.data.root)
    print("\n".join(_lines(name, config.data.root)))


def _had(source: NamedSource) -> str:
    return f"fetched by {source.had}" if source.had in ("torchvision", "learn2learn") else source.had


def _lines(name: str, root: str | None) -> list[str]:
    source = CATALOGUE[name]
    here, missing = _look(name, root)
    lines = [
        f"{name}: {source.what}",
        f"  from:    {source.source}",
        f"  terms:   {source.terms}",
        f"  how:     {_had(source)}" + (f", {source.size}" if source.size else ""),
    ]
    if layout := _layout(name, source):
        lines.append(f"  layout:  {layout}")
    if source.had != "embedded":
        lines.append(f"  looked:  in {' and '.join(str(place) for place in _places(name, root))}")
    lines.append(f"  here:    {here}" if here else f"  here:    no ({missing})")
    if here:
        flag = f"--data.root {root or name}" if source.root else f"--data.name {name}"
        flag += f" --data.root {root}" if root and not source.root and source.had != "embedded" else ""
        lines += [f"  use:     arelu-meta {task} {flag}" for task in source.tasks]
    elif source.had == "by hand":
        lines.append(f"  get it:  lay it out so in {_places(name, root)[-1]}, or say where with --data.root FOLDER")
    else:
        where = f" --data.root {root}" if root else ""
        lines.append(f"  get it:  arelu-meta data {name}{where} --data.fetch true")
    return lines


def _layout(name: str, source: NamedSource) -> str:
    if source.place:
        return f"{source.place}/{source.layout}"
    if source.had in ("torchvision", "learn2learn"):
        if name in NAMED_SETS:
            kind, module = NAMED_SETS[name].kind, "torchvision.datasets"
        else:
            from arelu_meta.data.fewshot.benchmarks import BENCHMARKS

            kind, module = BENCHMARKS[name], "learn2learn.vision.datasets"
        return f"{source.layout + ', ' if source.layout else ''}as {module}.{kind}(ROOT) has it"
    return ""


def _places(name: str, root: str | None) -> list[Path]:
    """List the folders in which a set is looked for, the last of which it is put into."""
    if CATALOGUE[name].place:
        return [Path(root)] if root else [Path(name).absolute(), data_home() / name]
    return [named_root(DataConfig(root=root))]


def _look(name: str, root: str | None) -> tuple[str, str]:
    """Say how many images of a set are here; else what is missing."""
    source, config = CATALOGUE[name], DataConfig(root=root, download=False)
    if name == "digits":
        return f"{len(load_digits()):,} images", ""
    if source.place:
        place = next((place for place in _places(name, root) if place.is_dir()), None)
        if place is None:
            return "", "no such folder"
        if lacking := [f"{part}/" for part in source.folders if not (place / part).is_dir()]:
            return "", f"{place} has no {' and no '.join(lacking)}"
        holders = class_holders(DataConfig(root=str(place)))
        count = sum(len(find_candidates(folder)) for folder in holders)
        return (f"{counted(count, 'image')} in {place}", "") if count else ("", f"{place} holds no image")
    try:
        if name == "mnist-m":
            return _look_for_either(root)
        if name in NAMED_SETS:
            return _told(_parts(name, config)), ""
        splits = _benchmark(name, config)
        return _told([len(splits.train), len(splits.validation or ()), len(splits.test)]), ""
    except InputError as error:
        reason = str(error).partition(" (")[2].rpartition(")")[0] or str(error)
        return "", reason.split(". ")[0].removeprefix("data.name: ")


def _look_for_either(root: str | None) -> tuple[str, str]:
    """Look for the digits and the photographs that MNIST-M is made of."""
    (digits, no_digits), photographs = _look(MNIST_M_NEEDS[0], root), [_look(name, root) for name in MNIST_M_NEEDS[1:]]
    if digits and any(here for here, _ in photographs):
        return "made when it is asked for", ""
    return "", no_digits or "no photographs: " + photographs[-1][1]


def _parts(name: str, config: DataConfig) -> list[int]:
    """Count the images of a torchvision set's parts; what is missing is downloaded where the config says so."""
    spec = NAMED_SETS[name]
    test = {"background": False} if name == "omniglot" else spec.test  # few-shot tasks take both of its parts
    return [
        0 if arguments is None else len(open_part(name, arguments, config))
        for arguments in (spec.train, spec.validation, test)
    ]


def _told(counts: Sequence[int]) -> str:
    return ", ".join(f"{count:,} {part}" for part, count in zip(_PARTS, counts, strict=True) if count) + " images"


def _fetch(name: str, root: str | None) -> None:
    source, config = CATALOGUE[name], DataConfig(root=root, download=True)
    if source.had == "embedded":
        return
    if source.had == "by hand":
        raise InputError(
            f"data.fetch: {name!r} is not fetched by torchvision or learn2learn; `arelu-meta data {name}` says "
            "where it comes from and how to lay it out"
        )
    if _look(name, root)[0]:
        return
    if name == "mnist-m":
        for needed in (MNIST_M_NEEDS[0], MNIST_M_NEEDS[-1]):
            _fetch(needed, root)
    elif name in NAMED_SETS:
        print(f"fetching {name} ({source.size}) to {named_root(config)}", flush=True)
        _parts(name, config)
    else:
        _benchmark(name, config)


def _benchmark(name: str, config: DataConfig) -> "ClassSplits":
    from arelu_meta.data.fewshot.benchmarks import load_benchmark  # with torch, for which the other sets need not wait

    return load_benchmark(name, config, 0)
