import csv
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.cli import main
from arelu_meta.errors import InputError
from arelu_meta.report import make_page, write_report
from arelu_meta.report.figures import Series, curves, heatmap
from arelu_meta.report.page import Chart, Page, Paragraph, Table

SCRIPT = "<script>alert(1)</script>"


class _Page(HTMLParser):
    """Counts elements, and keeps headings, captions and pictures without an alternative."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


def _charts(page: Page) -> list[Chart]:
    return [block for section in page.sections for block in section.blocks if isinstance(block, Chart)]


def _table(page: Page, title: str) -> Table:
    blocks = [block for section in page.sections for block in section.blocks]
    return next(block for block in blocks if isinstance(block, Table) and block.title == title)


def _warnings(page: Page) -> list[str]:
    blocks = [block for section in page.sections for block in section.blocks]
    return [block.text for block in blocks if isinstance(block, Paragraph) and block.warning]


def test_a_run_s_page_is_one_file_with_markdown_and_csv_beside_it(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make.finetune(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    text = (run / "report.html").read_text(encoding="utf-8")
    for tag, attribute in (("link", "href"), ("img", "src"), ("script", "src")):
        assert all((one.get(attribute) or "data:").startswith("data:") for one in _Page(text).of(tag))
    assert "85.0 %" in (run / "report.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    rows = list(csv.reader((run / "report.csv").read_text(encoding="utf-8").splitlines()))
    assert ["test_accuracy", "0.85"] in rows


@pytest.mark.parametrize("kind", ["finetune", "metatrain", "study"])
def test_no_text_of_a_user_becomes_an_element(kind: str, make: Any, tmp_path: Path) -> None:
    folder = getattr(make, kind)(tmp_path / "a<img src=x onerror=alert(1)>")
    write_report([folder], tmp_path / "report.html")
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 3  # the charts' numbers, plotly, and our own
    assert page.tags.count("b") == 0
    assert page.tags.count("img") == (0 if kind == "metatrain" else 1)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"(?s)^(`{3,})$.*?^\1$", "", markdown, flags=re.MULTILINE)
    assert "<" not in outside


def test_headings_tables_and_pictures_tell_a_screen_reader_what_they_are(make: Any, tmp_path: Path) -> None:
    for folder in (make.finetune(tmp_path / "run"), make.study(tmp_path / "study")):
        write_report([folder], tmp_path / "report.html")
        page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.tags.count("caption") == page.tags.count("table") > 0
        assert all(one.get("scope") in {"col", "row"} for one in page.of("th"))
        assert all(one.get("alt") for one in page.of("img"))
        plots = [one for one in page.of("div") if one.get("class") == "plot"]
        assert plots
        assert all(one["role"] == "img" and one["aria-label"] for one in plots)
        assert page.of("html")[0]["lang"] == "en"


def test_every_chart_is_one_that_plotly_knows(make: Any, tmp_path: Path) -> None:
    import plotly.graph_objects as go

    pages = [make_page([make.finetune(tmp_path / "a")]), make_page([make.metatrain(tmp_path / "b")])]
    pages += [make_page([make.study(tmp_path / "c")]), make_page([tmp_path / "a", tmp_path / "b"])]
    charts = [chart for page in pages for chart in _charts(page)]
    assert len(charts) > 15
    for chart in charts:
        go.Figure(data=chart.traces, layout=chart.layout)  # an unknown or misplaced property raises


def test_a_study_that_has_not_ended_is_a_study_s_page_and_says_how_far_it_is(make: Any, tmp_path: Path) -> None:
    folder = make.study(tmp_path / "study")
    (folder / "results.json").unlink()
    (folder / "runs.jsonl").write_text('{"trial": {}}\n{"trial": {}}\n{"tri')
    page = make_page([folder])
    assert (page.title, page.kind) == ("Study: mnist", "Study of a claim")
    assert "it has not ended. 2 of its runs have. The same command with --run.resume auto goes on." in page.headline
    with pytest.raises(InputError, match=r"^compare: '.*study' holds a study"):
        make_page([folder, make.finetune(tmp_path / "run")], compare=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verdicts", 5),
        ("curves", [{"title": "a", "x_label": "", "y_label": "", "series": []}]),
        (
            "curves",
            [
                {
                    "title": "a",
                    "x_label": "",
                    "y_label": "",
                    "series": [{"name": "b", "x": [float("nan"), 1.0], "y": [1, 2]}],
                }
            ],
        ),
    ],
)
def test_an_odd_entry_of_a_study_costs_itself_and_nothing_else(
    name: str, value: Any, make: Any, tmp_path: Path
) -> None:
    folder = make.study(tmp_path / "study")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {name: value}))
    write_report([folder], tmp_path / "report.html")
    assert all(chart.traces for chart in _charts(make_page([folder])))


def test_the_verdicts_come_first_and_the_headline_counts_them(make: Any, tmp_path: Path) -> None:
    page = make_page([make.study(tmp_path / "study")])
    assert page.headline == "Of 3 claims, 1 is ahead, 1 is behind and 1 needs more seeds."
    assert [one.verdict for one in page.verdicts] == ["ahead", "need more seeds", "behind"]
    assert page.verdicts[0].sentence == "Ahead; +5.0 points."
    write_report([tmp_path / "study"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.index("AReLU is faster") < text.index("<nav")
    assert (tmp_path / "report-verdicts.csv").is_file()


def test_a_study_of_version_01_is_read_in_the_new_words(make: Any, tmp_path: Path) -> None:
    folder = make.study(tmp_path / "study")
    results = json.loads((folder / "results.json").read_text())
    old = [
        {"claim": name, "verdict": verdict, "difference": low, "low": low, "high": high, "margin": 1.0}
        for name, verdict, low, high in (
            ("a", "holds", 2.0, 3.0),
            ("b", "does not hold", -0.5, 0.5),
            ("c", "does not hold", -3.0, -2.0),
            ("d", "does not hold", -3.0, 0.5),
            ("e", "cannot tell", -3.0, 3.0),
        )
    ]
    (folder / "results.json").write_text(json.dumps(results | {"verdicts": old}))
    page = make_page([folder])
    assert [one.verdict for one in page.verdicts] == ["ahead", "level", "behind", "need more seeds", "need more seeds"]
    assert page.headline == "Of 5 claims, 1 is ahead, 1 is level, 1 is behind and 2 need more seeds."


def test_a_study_says_what_it_compared_and_what_its_reader_should_know(make: Any, tmp_path: Path) -> None:
    folder = make.study(tmp_path / "study")
    first = make_page([folder]).sections[0]
    assert [block.text for block in first.blocks if isinstance(block, Paragraph)] == [
        "MNIST-Conv: AReLU, ReLU, <script>alert(1)</script>",
        "2 runs of <script>alert(1)</script> became NaN.",
        "Read both.",
    ]
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"notes": "x", "headline": 3}))
    page = make_page([folder])
    assert page.sections[0].title == "Curves"
    assert "notes is no list" in str(page.sections[-1])


def test_an_interval_lies_where_its_numbers_say() -> None:
    from arelu_meta.report.figures import render_verdicts
    from arelu_meta.report.page import Verdict

    first = Verdict("a", "ahead", difference=5.0, low=4.0, high=6.0, margin=1.0)
    other = Verdict("b", "need more seeds", difference=500.0, low=-500.0, high=600.0, unit="per cent of the norm")
    drawn, elsewhere = (one["whisker"] for one in render_verdicts([first, other]))
    assert drawn["margin_below"] < drawn["zero"] < drawn["margin"] < drawn["low"] < drawn["dot"] < drawn["high"] < 100
    assert drawn["high"] > 90  # another unit has another scale
    assert elsewhere["low"] < elsewhere["zero"] < elsewhere["dot"]


def test_a_run_that_has_not_ended_says_how_far_it_is(make: Any, tmp_path: Path) -> None:
    run = make.finetune(tmp_path / "run")
    (run / "results.json").unlink()
    assert "has not ended. It has come to epoch 3 of 3; validation accuracy so far 75.0" in make_page([run]).headline


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("results.json", text) for text in ("{", "[1]", "\0", '{"task": 3, "verdicts": "x", "test_accuracy": NaN}')],
        *[("config.yaml", text) for text in ("a: [", "- 1", "")],
        *[("metrics.csv", text) for text in ("epoch\n", "a,b\n1,2,3\n", '"', "epoch,train_loss\nx,y\n")],
        *[("confusion.csv", text) for text in ("", "x", "a,b\nc,d\n", "a,b\nc,1\nd,2\n")],
        *[("scalars.csv", text) for text in ("epoch,alpha\n1,2\n", "path\n\n")],
        *[("gradients.csv", text) for text in ("step,layer\n1,a\n", "step,layer,norm\n1,a,nan\n")],
        *[(name, "not,a\ntable") for name in ("per_class.csv", "confused_pairs.csv", "mistakes.csv", "mistakes.png")],
        *[(name, "5") for name in ("environment.json", "split.json")],
    ],
)
def test_a_damaged_file_costs_its_section_and_nothing_else(name: str, content: str, make: Any, tmp_path: Path) -> None:
    run = make.finetune(tmp_path / "run")
    (run / name).write_text(content)
    written = write_report([run], tmp_path / "report.html")
    assert "Environment, command and seeds" in written[0].read_text(encoding="utf-8")


def test_what_is_damaged_is_named_in_a_sentence(make: Any, tmp_path: Path) -> None:
    run = make.finetune(tmp_path / "run")
    (run / "split.json").write_text("{")
    (run / "per_class.csv").write_text("other\n1\n")
    (run / "mistakes.png").write_text("no picture")
    (run / "confusion.csv").write_text("a,b\nc,d\n")
    said = " ".join(_warnings(make_page([run])))
    assert "per_class.csv has no column class, recall and is left out" in said
    assert "mistakes.png cannot be read as a picture" in said
    assert "confusion.csv is damaged" in said


@pytest.mark.parametrize("lost", ["metrics.csv", "config.yaml", "environment.json", "split.json", "mistakes.png"])
def test_a_missing_file_is_no_error(lost: str, make: Any, tmp_path: Path) -> None:
    run = make.finetune(tmp_path / "run")
    (run / lost).unlink()
    assert make_page([run]).headline.startswith("tiny with arelu gets 85.0")


def test_entries_of_a_study_that_cannot_be_read_are_left_out_with_a_sentence(make: Any, tmp_path: Path) -> None:
    folder = make.study(tmp_path / "study")
    content = json.loads((folder / "results.json").read_text())
    content["verdicts"].append({"claim": "odd", "verdict": "perhaps"})
    content["tables"].append({"title": "short", "columns": ["a", "b"], "rows": [[1]]})
    content["curves"].append(
        {"title": "uneven", "x_label": "", "y_label": "", "series": [{"name": "a", "x": [1], "y": []}]}
    )
    content["heatmaps"].append(5)
    content["images"].append({"title": "outside", "file": "../../etc/passwd"})
    (folder / "results.json").write_text(json.dumps(content))
    page = make_page([folder])
    assert len(page.verdicts) == 3
    said = _warnings(page)
    for name, entry in (("verdicts", 4), ("tables", 2), ("curves", 5), ("heatmaps", 2)):
        assert f"results.json: entry {entry} of {name} is damaged and left out." in said
    assert any("outside the study" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "runs: 'nowhere' does not exist"),
        (["empty"], "runs: 'empty' holds no run"),
        (["run/results.json"], "is a file"),
        (["run", "--output", "page.txt"], "output: 'page.txt' is no page's name"),
        (["run", "--output", "no/page.html"], "lies in 'no', which does not exist"),
        (["run", "--output", "mine.html"], "is there and is no report"),
        (["run", "--output", "run/metrics.html"], "would have metrics.csv beside it, which is there and of no report"),
        (["run", "several/one"], "output: 'report.html' would have report.md beside it"),
        (["--compare", "run"], "compare: 1 folders are given; give two"),
        (["--compare", "run", "several"], "holds several runs"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str],
    says: str,
    make: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make.finetune(Path("run"))
    make.finetune(Path("several/one"))
    Path("empty").mkdir()
    Path("mine.html").write_text("my own page")
    Path("report.md").write_text("my own report")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("mine.html").read_text() == "my own page"


def test_a_report_may_be_written_again(make: Any, tmp_path: Path) -> None:
    run = make.finetune(tmp_path / "run")
    for name in ("report.html", "page.html"):
        for _ in range(2):
            write_report([run], run / name)
    (run / "report.html").unlink()
    write_report([run], run / "report.html")


def test_runs_whose_folders_have_one_name_are_told_apart(make: Any, tmp_path: Path) -> None:
    folders = [make.finetune(tmp_path / letter / "out", lr=lr) for letter, lr in (("a", 0.1), ("b", 0.2))]
    assert [row[0] for row in _table(make_page(folders), "All runs").rows] == list(map(str, folders))
    assert make_page(folders, compare=True).title == f"{folders[0]} and {folders[1]}"


def test_a_run_that_is_named_twice_counts_once(make: Any, tmp_path: Path) -> None:
    first, second = (make.finetune(tmp_path / "all" / name, seed=seed) for seed, name in enumerate(("a", "b")))
    page = make_page([first, tmp_path / "all", first])
    assert [row[0] for row in _table(page, "All runs").rows] == ["a", "all/b"]
    assert make_page([second, second]).kind == "Fine-tuning run"


def test_two_runs_on_the_same_images_are_compared_image_by_image(make: Any, tmp_path: Path) -> None:
    from scipy.stats import binomtest

    first, second = make.finetune(tmp_path / "a", wrong=14), make.finetune(tmp_path / "b", wrong=2, activation=None)
    page = make_page([first, second], compare=True)
    assert page.headline.startswith("B, tiny with its own activation, is ahead of A by 60.0 points on the test images")
    shown = {fact.label: fact.value for fact in page.facts}
    assert shown["p"] == f"{binomtest(12, 12).pvalue:.2g}"
    assert _table(page, "Settings that differ").rows == [["model.activation", "arelu", "default"]]


def test_a_difference_within_chance_is_called_so(make: Any, tmp_path: Path) -> None:
    first, second = make.finetune(tmp_path / "a", wrong=3), make.finetune(tmp_path / "b", wrong=4)
    assert make_page([first, second], compare=True).headline.startswith("Cannot tell A and B apart")


def test_runs_on_different_images_or_of_different_tasks_are_not_paired(make: Any, tmp_path: Path) -> None:
    first, second = make.finetune(tmp_path / "a", wrong=14), make.finetune(tmp_path / "b", wrong=2)
    split = json.loads((second / "split.json").read_text())
    (second / "split.json").write_text(json.dumps(split | {"test": [f"other/{i}" for i in range(20)]}))
    page = make_page([first, second], compare=True)
    assert "p" not in {fact.label for fact in page.facts}
    assert any("different images" in sentence for sentence in _warnings(page))
    other = make_page([first, make.metatrain(tmp_path / "c")], compare=True)
    assert other.headline == "The two runs cannot be compared by their test accuracy."


def test_runs_that_differ_by_seed_alone_become_one_line_with_a_band(make: Any, tmp_path: Path) -> None:
    for seed in range(3):
        for lr in (0.1, 0.01):
            for name in ("arelu", "relu"):
                make.finetune(tmp_path / "sweep" / f"{name}-{lr}-{seed}", 1 + seed, seed, lr, name)
    page = make_page([tmp_path / "sweep"])
    lines = next(chart for chart in _charts(page) if chart.title == "Validation accuracy").traces
    assert sorted(one["name"] for one in lines if "name" in one) == [
        f"{name}, lr {lr} (3 runs)" for name in ("arelu", "relu") for lr in ("0.01", "0.1")
    ]
    heat = next(chart for chart in _charts(page) if chart.traces[0]["type"] == "heatmap")
    assert heat.layout["xaxis"]["ticktext"] == ["0.01", "0.1"]
    assert heat.traces[0]["z"] == [[0.9, 0.9], [0.9, 0.9]]
    assert len(_table(page, "All runs").rows) == 12


def test_the_best_of_several_is_chosen_on_validation_images(make: Any, tmp_path: Path) -> None:
    make.finetune(tmp_path / "all" / "a", wrong=0, lr=0.1)
    better = make.finetune(tmp_path / "all" / "b", wrong=5, lr=0.2)
    results = json.loads((better / "results.json").read_text())
    (better / "results.json").write_text(json.dumps(results | {"validation_accuracy": 0.99}))
    assert make_page([tmp_path / "all"]).headline.startswith("Best on validation images: lr 0.2, ")


def test_a_sweep_s_folder_shows_its_runs_and_its_own_table(make: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    make.finetune(sweep / "runs" / "abc", lr=0.1)
    broken = make.finetune(sweep / "runs" / "def", lr=0.2)
    (broken / "results.json").unlink()
    (sweep / "results.json").write_text('{"task": "sweep", "best": {}}')
    (sweep / "results.csv").write_text("run,optim.lr,status\nabc,0.1,finished\ndef,0.2,failed\n")
    page = make_page([sweep])
    assert page.kind == "Sweep"
    assert "1 has no result" in page.headline
    assert _table(page, "The sweep’s own table (results.csv)").rows[1] == ["def", 0.2, "failed"]


def test_runs_of_different_tasks_are_not_ranked(make: Any, tmp_path: Path) -> None:
    page = make_page([make.finetune(tmp_path / "a"), make.metatrain(tmp_path / "b")])
    assert "different tasks" in page.headline


def test_a_study_of_100_runs_stays_below_15_mb(make: Any, tmp_path: Path) -> None:
    folder = make.study(tmp_path / "study", activations=5, rates=4, epochs=300, seeds=5)
    write_report([folder], folder / "report.html")
    assert (folder / "report.html").stat().st_size < 15_000_000


def test_a_picture_too_large_for_the_page_is_left_out_with_a_sentence(make: Any, tmp_path: Path) -> None:
    from arelu_meta.report.page import Budget, picture

    run = make.finetune(tmp_path / "run")
    found = picture(run / "mistakes.png", "Mistakes", "alt", Budget(left=10))
    assert isinstance(found, Paragraph)
    assert "left out" in found.text


def test_a_moved_folder_can_still_be_reported(make: Any, tmp_path: Path) -> None:
    run = make.finetune(tmp_path / "run")
    shutil.move(run, tmp_path / "elsewhere")
    assert make_page([tmp_path / "elsewhere"]).title == "elsewhere"


def test_a_long_name_is_shortened_whatever_signs_it_has() -> None:
    long = f"<a> & {'b' * 300}"
    names = [
        curves("a", "epoch", "accuracy", [Series(long, [1], [1.0])]).traces[0]["name"],
        heatmap("a", "x", "y", ["c"], [long], [[1.0]]).layout["yaxis"]["ticktext"][0],
    ]
    assert all(name.startswith("&lt;a&gt; &amp; bb") and len(name) < 60 for name in names)


def test_an_axis_of_a_few_thousandths_has_different_numbers_at_its_ticks() -> None:
    chart = curves("a", "epoch", "accuracy", [Series("b", [1, 2], [0.003, 0.005])], percent=True)
    assert chart.layout["yaxis"]["tickformat"] == ".2~%"  # 0.3%, 0.35%, 0.4%; plotly shows 50% as ever


def test_studies_among_runs_are_not_called_unfinished_and_are_not_compared(make: Any, tmp_path: Path) -> None:
    study = make.study(tmp_path / "study")
    make.finetune(tmp_path / "run")
    headline = make_page([tmp_path]).headline
    assert "1 is a study, which has no test accuracy but verdicts" in headline
    assert "no result" not in headline
    with pytest.raises(InputError, match=r"^compare: '.*study' holds a study; give the folder of a run"):
        make_page([tmp_path / "run", study], compare=True)


def test_a_study_s_runs_are_counted_as_the_study_does(make: Any, tmp_path: Path) -> None:
    study = make.study(tmp_path / "study")
    results = json.loads((study / "results.json").read_text())
    (study / "results.json").write_text(json.dumps({**results, "runs": 2}))  # rows may be images of a run
    assert [one.value for one in make_page([study]).facts if one.label == "Runs"] == ["2"]


def test_a_study_of_very_many_read_outs_is_counted_without_reading_them(make: Any, tmp_path: Path) -> None:
    study = make.study(tmp_path / "study")
    results = json.loads((study / "results.json").read_text())
    (study / "results.json").write_text(json.dumps({**results, "runs": 1140}))
    with (study / "runs.csv").open("r+b") as file:
        file.truncate(100_000_000)  # gradients at its full size has some 180,000 rows
    page = make_page([study])
    assert [one.value for one in page.facts if one.label == "Runs"] == ["1,140"]
    assert _warnings(page) == []


def test_no_run_among_folders_is_an_error_of_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        make_page([tmp_path])


def test_numbers_of_400_digits_and_alias_bombs_cost_themselves_and_nothing_else(make: Any, tmp_path: Path) -> None:
    long, bomb = make.finetune(tmp_path / "long"), make.finetune(tmp_path / "bomb")
    results = json.loads((long / "results.json").read_text())
    text = json.dumps(results | {"seconds": 7, "ece": 8, "seed": 9})
    for value in ("7", "8", "9"):
        text = text.replace(f": {value}", f": {'9' * 400}")
    (long / "results.json").write_text(text)
    (long / "config.yaml").write_text(f"run: {{seed: {'9' * 400}}}\noptim: {{lr: {'1' * 400}}}\n")
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12)]
    (bomb / "config.yaml").write_text("\n".join([*lines, "optim: {lr: *x11}"]))
    assert main(["report", str(long)]) == 0
    assert main(["report", str(bomb)]) == 0
    assert main(["report", str(long), str(bomb), "--output", str(tmp_path / "both.html")]) == 0
    words = ["report", str(long), str(bomb), "--compare", "--output", str(tmp_path / "compared.html")]
    assert main(words) == 0


def test_a_single_row_is_no_curve_and_what_two_runs_were_given_alike_is_no_result(make: Any, tmp_path: Path) -> None:
    runs = [make.metatrain(tmp_path / "a"), make.metatrain(tmp_path / "b", accuracy=0.7)]
    assert main(["report", *map(str, runs), "--compare", "--output", str(tmp_path / "compared.html")]) == 0
    text = (tmp_path / "compared.md").read_text()
    assert "| ways |" not in text
    assert "test low" in text
    assert not re.search(r"test low.*points", text)
    one = make.finetune(tmp_path / "one")
    lines = (one / "metrics.csv").read_text().splitlines(keepends=True)
    (one / "metrics.csv").write_text("".join(lines[:2]))
    assert main(["report", str(one)]) == 0
    text = (one / "report.md").read_text()
    assert "There is one row and so no curve" in text


def test_two_meta_learners_of_one_seed_are_compared_task_by_task(tmp_path: Path) -> None:
    tiny = "--model.name mnist_linear --data.image_size 8 --task.queries 2 --meta.steps 2 --eval.tasks 6 "
    tiny += "--eval.validation_tasks 2 --meta.batch_tasks 2 --run.pictures false"
    for name, more in (("a", []), ("b", ["--meta.inner_lr", "0.1"]), ("c", ["--run.seed", "1"])):
        assert main(["metatrain", *tiny.split(), *more, "--run.folder", str(tmp_path / name)]) == 0
    for second, paired in (("b", True), ("c", False)):
        page = tmp_path / f"{second}.html"
        assert main(["report", str(tmp_path / "a"), str(tmp_path / second), "--compare", "--output", str(page)]) == 0
        assert ("Compared task by task on the same 6 tasks" in page.with_suffix(".md").read_text()) is paired
