"""`arelu-meta report`: one self-contained page of a run, a study, a sweep or several runs."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from arelu_meta.config import ReportConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.report.compare_page import compare_page
from arelu_meta.report.finetune_page import finetune_page
from arelu_meta.report.metatrain_page import metatrain_page
from arelu_meta.report.page import Budget, Page
from arelu_meta.report.race_page import race_page
from arelu_meta.report.render import GENERATOR, csv_tables, render_html, render_markdown
from arelu_meta.report.run_data import Run, holds_run, open_folder, runs_below
from arelu_meta.report.study_page import study_page
from arelu_meta.report.sweep_page import several_page
from arelu_meta.validation import expanded

_HEAD = 4096  # bytes of a file in which a page of ours names itself
_NAME = "report.html"
_KINDS = {"sweep": "Sweep", "finetune": "Repeated fine-tuning", "": "Folder of runs"}


def report_task(config: ReportConfig) -> Path:
    """Write a report, and say where it lies.

    Args:
        config: of what, and where to.

    Returns:
        The page's path.

    Raises:
        InputError: if a folder holds no run, or the page would replace a file that is none of ours.
        RunError: if the page cannot be written.
    """
    path = expanded(config.output) if config.output is not None else default_path(config)
    written = write_report([Path(one) for one in config.runs], path, compare=config.compare)
    print(f"written to {written[0]}, with {', '.join(one.name for one in written[1:])} beside it", flush=True)
    return written[0]


def default_path(config: ReportConfig) -> Path:
    """Choose where a report goes: into the folder it is of, or for several into the working directory.

    Args:
        config: without output.
    """
    if len(config.runs) == 1:
        return expanded(config.runs[0]) / _NAME
    return Path("compare.html" if config.compare else _NAME)


def write_report(folders: Sequence[str | Path], path: str | Path, compare: bool = False) -> list[Path]:
    """Write a report of runs as HTML, with Markdown and CSV beside it.

    Args:
        folders: of runs, a study, a sweep, or folders of runs; they are only read.
        path: the HTML file; `report.html` has `report.md` and `report.csv` beside it, and further tables as
            `report-TITLE.csv`.
        compare: whether to compare two runs, the second with the first.

    Returns:
        What was written, the page first.

    Raises:
        InputError: if a folder holds no run, compare is not of two, or the page would replace a file that is no report.
        RunError: if the page cannot be written.
    """
    target = Path(path)
    page = make_page(folders, compare)
    check_target(target)
    tables = csv_tables(page)
    contents = {target: render_html(page), target.with_suffix(".md"): render_markdown(page, target.name)}
    contents |= {target.with_name(f"{target.stem}{end}.csv"): text for end, text in tables.items()}
    _check_beside(target, contents)
    for place, text in contents.items():
        _write(place, text)
    return list(contents)


def make_page(folders: Sequence[str | Path], compare: bool = False) -> Page:
    """Read runs and lay out their page.

    Args:
        folders: as in `write_report`.
        compare: as in `write_report`.

    Raises:
        InputError: as in `write_report`.
    """
    found = _named_apart([open_folder(folder) for folder in folders])
    if compare:
        if len(found) != 2:
            raise InputError(f"compare: {len(found)} folders are given; give two, as in --compare A B")
        for run in found:
            if run.task in ("claims", "race"):
                raise InputError(f"compare: {str(run.folder)!r} holds a study; give the folder of a run")
            if not holds_run(run.folder):
                raise InputError(f"compare: {str(run.folder)!r} holds several runs; give the folder of one")
        return compare_page(*found)
    if len({run.folder.resolve() for run in found}) == 1:
        return _page_of(found[0])
    # A run that is named twice, or lies in a folder that is named too, is one run.
    runs: dict[Path, Run] = {}
    for run in (run for one in found for run in _runs_of(one)):
        runs.setdefault(run.folder.resolve(), run)
    return several_page(list(runs.values()), f"{len(runs)} runs", "Several runs")


def _named_apart(runs: list[Run]) -> list[Run]:
    """Call runs whose folders have the same name by the paths that a person gave."""
    places = {(run.folder.resolve(), run.name) for run in runs}
    for run in runs:
        if sum(run.name == name for _, name in places) > 1:
            run.name = str(run.folder)
    return runs


def _page_of(run: Run) -> Page:
    if run.task == "claims":
        return study_page(run, Budget())
    if run.task == "race":
        return race_page(run, Budget())
    below = runs_below(run.folder)
    if below and (run.task == "sweep" or "runs" in run.results or not holds_run(run.folder)):
        return several_page(below, run.name, _KINDS.get(run.task, _KINDS[""]), run)
    if run.task == "metatrain":
        return metatrain_page(run)
    return finetune_page(run, Budget())


def _runs_of(run: Run) -> list[Run]:
    """Take a run as it is, and a folder of runs apart."""
    below = runs_below(run.folder)
    if not below or (holds_run(run.folder) and run.task != "sweep" and "runs" not in run.results):
        return [run]
    for one in below:
        one.name = f"{run.name}/{one.name}"
    return below


def check_target(path: Path) -> None:
    """Refuse a path that a report should not be written to.

    Args:
        path: of the page.

    Raises:
        InputError: if it is no HTML file's, its folder is missing, or a file lies there that is no report.
    """
    if path.suffix.lower() not in {".html", ".htm"}:
        raise InputError(f"output: {str(path)!r} is no page's name; give one that ends in .html")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {str(path.parent)!r}, which does not exist"
        raise InputError(f"output: {str(path)!r} {what}; give a file in a folder that is there")
    if path.is_file() and f'content="{GENERATOR} ' not in _read_head(path):
        raise InputError(f"output: {str(path)!r} is there and is no report of {GENERATOR}; give another name")


def _check_beside(page: Path, places: Iterable[Path]) -> None:
    """Refuse to replace what lies beside a page that is not there yet, as a study's runs.csv beside runs.html.

    Args:
        page: the HTML file.
        places: of all that is to be written.

    Raises:
        InputError: naming a file that is not of a report before this one.
    """
    if page.is_file() or (page.name == _NAME and holds_run(page.parent)):
        return
    for place in places:
        if place.exists():
            raise InputError(
                f"output: {str(page)!r} would have {place.name} beside it, which is there and of no report; give "
                "another name"
            )


def _read_head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"output: {str(path)!r} cannot be read ({error.strerror}); give another name") from error


def _write(path: Path, text: str) -> None:
    from arelu_meta.runs.atomic_io import write_atomically

    # A file name may hold what is no character in any encoding.
    content = text.encode("utf-8", "backslashreplace")
    write: Callable[[Path], object] = lambda temporary: temporary.write_bytes(content)  # noqa: E731
    try:
        write_atomically(path, write)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror})") from error
