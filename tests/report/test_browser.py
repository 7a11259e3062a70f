"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arelu_meta.report import write_report
from arelu_meta.report.figures import Series, curves, dots, heatmap
from arelu_meta.report.page import Page, Section, Table
from arelu_meta.report.render import render_html

SCRIPT = "<script>alert(1)</script>"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
_KINDS = "[...document.querySelectorAll('.plot')].flatMap((plot) => (plot.{} || []).map((trace) => trace.type))"
MINUTE = 60_000  # milliseconds; nothing here is timed, a slow machine only takes longer

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=2 * MINUTE)
        yield opened
        opened.close()


class Opened:
    """A page that has drawn all of its charts, and what it asked for and complained of on the way."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(MINUTE)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached")
        # Plotly draws a kind of chart that it was not given as a line, without a word.
        assert self.page.evaluate(_KINDS.format("data")) == self.page.evaluate(_KINDS.format("_fullData"))

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def outside(self) -> list[str]:
        own = ("data:", "blob:", self.page.url)
        return [url for url in self.requests if not url.startswith(own)]


@pytest.fixture(scope="module")
def study_page(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make.study(tmp_path_factory.mktemp("study") / "study")
    return write_report([folder], folder / "report.html")[0]


@pytest.fixture(scope="module")
def study(browser: Any, study_page: Path) -> Iterator[Opened]:
    opened = Opened(browser, study_page)
    yield opened
    opened.context.close()


def test_a_page_draws_its_charts_without_a_complaint_and_asks_for_nothing(study: Opened) -> None:
    plots = study.page.locator(".plot")
    assert plots.count() == 5
    assert study.page.locator(".plot .scatterlayer .trace .js-line").count() > 12
    assert study.page.locator(".plot .heatmaplayer image").count() == 1
    assert study.complaints == []
    assert study.outside() == []


def test_a_name_that_looks_like_a_script_is_shown_as_it_is(study: Opened) -> None:
    legend = study.page.locator(".plot .legendtext").all_text_contents()
    assert SCRIPT in legend
    assert SCRIPT in " ".join(study.page.locator(".verdict h3").all_text_contents())
    assert study.complaints == []


def test_a_column_sorts_up_and_down_by_its_numbers(study: Opened) -> None:
    table = study.page.locator("table", has=study.page.locator("caption", has_text="Means")).first
    button = table.locator("thead button", has_text="accuracy")
    orders = []
    for expected in ("descending", "ascending"):
        button.click()
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == expected
        orders.append([float(text) for text in table.locator("tbody td").all_text_contents()])
    assert orders == [[92.0, 91.0, 90.0], [90.0, 91.0, 92.0]]


def test_a_column_of_written_figures_sorts_by_their_numbers(browser: Any, tmp_path: Path) -> None:
    columns = {
        "difference": ["-0.5", "+10.2", "-7.4", "\u22123.0", "+1.2", None],
        "chance": ["0.3", "1.2e-05", "0.04", "1", "0.0015", ""],
        "spread": ["9.9 ± 0.8", "92.1 ± 0.3 (at 0.001)", "-1.0 to +2.0", "1,347", "5 of 7", ""],
        "steps": ["120", "40", "never", "300", "60", ""],
    }
    table = Table("Figures", list(columns), list(zip(*columns.values(), strict=True)))
    path = tmp_path / "table.html"
    path.write_text(render_html(Page("a", "b", "c", sections=[Section("d", [table])])), encoding="utf-8")
    opened = Opened(browser, path)
    expected = {
        "difference": ["+10.2", "+1.2", "-0.5", "\u22123.0", "-7.4", ""],
        "chance": ["1", "0.3", "0.04", "0.0015", "1.2e-05", ""],
        "spread": ["1,347", "92.1 ± 0.3 (at 0.001)", "9.9 ± 0.8", "5 of 7", "-1.0 to +2.0", ""],
        "steps": ["40", "60", "120", "300", "never", ""],
    }
    for place, name in enumerate(columns):
        opened.page.locator("thead button", has_text=name).click()
        cells = opened.page.locator(f"tbody tr > :nth-child({place + 1})").all_text_contents()
        assert cells == expected[name]
    assert opened.complaints == []
    opened.context.close()


def test_a_page_is_readable_and_sorts_before_its_charts_start_and_prints_them_all_the_same(
    browser: Any, study_page: Path
) -> None:
    context = browser.new_context()
    context.add_init_script(
        "const later = setTimeout; window.requestAnimationFrame = () => 0;"
        "window.setTimeout = (work, wait, ...rest) => wait === 3000 ? 0 : later(work, wait, ...rest);"
    )
    page = context.new_page()
    page.goto(study_page.as_uri())
    assert page.evaluate("typeof Plotly") == "undefined"
    head = page.locator("th button").first
    head.click()
    assert head.locator("xpath=..").get_attribute("aria-sort") in ("ascending", "descending")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".plot").count() > 0
    assert page.locator(".plot .main-svg").count() >= page.locator(".plot").count()
    context.close()


def test_a_click_on_the_legend_hides_a_line_and_its_band(study: Opened) -> None:
    plot = study.page.locator(".plot").first
    traces = "[...document.querySelector('.plot')._fullData].map(one => [one.legendgroup, one.visible])"
    assert study.page.evaluate(traces) == [[f"s{line}", True] for line in (0, 0, 1, 1, 2, 2)]
    before = plot.locator(".scatterlayer .trace").count()
    plot.locator(".legendtoggle").first.click()
    plot.locator(".scatterlayer .trace").nth(before - 1).wait_for(state="detached")
    hidden = [name for name, visible in study.page.evaluate(traces) if visible == "legendonly"]
    assert hidden == ["s0", "s0"]


def test_a_chart_s_numbers_open_as_a_table(study: Opened) -> None:
    figure = study.page.locator("figure.chart").nth(1)
    figure.locator("summary").click()
    table = figure.locator("table")
    table.wait_for()
    assert table.locator("thead th").all_text_contents() == ["epoch", "AReLU", "ReLU", SCRIPT]
    assert table.locator("tbody tr").count() == 20


def test_long_names_on_both_sides_leave_a_map_its_height(browser: Any, tmp_path: Path) -> None:
    names = [f"{letter}{'a' * 40}" for letter in "bcde"]
    chart = heatmap("Map", "predicted", "true", names, names, [[0.5] * 4] * 4, ".0%", "share of the true class")
    path = tmp_path / "map.html"
    path.write_text(render_html(Page("a", "b", "c", sections=[Section("d", [chart])])), encoding="utf-8")
    opened = Opened(browser, path, viewport={"width": 1200, "height": 900})
    assert opened.page.locator(".plot .heatmaplayer").bounding_box()["height"] > 100
    assert opened.complaints == []


def test_long_names_of_rows_leave_a_chart_its_width_in_a_narrow_window(browser: Any, tmp_path: Path) -> None:
    names = [f"{letter} & <b>{'long ' * 12}" for letter in "cd"]
    drawn = [
        dots("Dots", "accuracy", names, [0.5, 0.6], [0.4, 0.5], [0.6, 0.7], percent=True),
        heatmap("Map", "predicted", "true", ["a", "b"], names, [[0.5, 0.2]] * 2),
        curves("Rates", "learning rate", "accuracy", [Series("a", [1e-5, 1e-4, 1e-3], [1.0, 2.0, 3.0])]),
    ]
    path = tmp_path / "narrow.html"
    path.write_text(render_html(Page("a", "b", "c", sections=[Section("d", drawn)])), encoding="utf-8")
    opened = Opened(browser, path, viewport={"width": 360, "height": 800})
    charts = "[...document.querySelectorAll('[data-chart]')].map((plot) => {})"
    assert min(opened.page.evaluate(charts.format("plot._fullLayout._size.w"))) > 140
    shown, _, rates = opened.page.evaluate(
        charts.format("[...plot.querySelectorAll('.ytick, .xtick')].map((tick) => tick.textContent)")
    )
    assert [name[:7] for name in shown if "&" in name] == ["c & <b>", "d & <b>"]
    assert not any("μ" in rate for rate in rates)
    assert opened.complaints == []
    opened.context.close()


def test_a_narrow_dark_page_does_not_scroll_sideways_and_is_dark(browser: Any, study_page: Path) -> None:
    opened = Opened(browser, study_page, viewport={"width": 360, "height": 700}, color_scheme="dark")
    wide = opened.page.evaluate("document.documentElement.scrollWidth")
    background = opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert wide <= 360
    assert max(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) < 60
    # In print it is light again, and has neither buttons nor contents.
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.locator("nav").is_visible()
    assert opened.complaints == []
    opened.context.close()


def test_a_printed_table_says_how_many_of_its_rows_are_there(browser: Any, tmp_path: Path) -> None:
    table = Table("Runs", ["run"], [[f"run {number}"] for number in range(9)], shown=4)
    path = tmp_path / "table.html"
    path.write_text(render_html(Page("a", "b", "c", sections=[Section("d", [table])])), encoding="utf-8")
    opened = Opened(browser, path)
    said = "getComputedStyle(document.querySelector('.more'), '::after').content"
    assert opened.page.evaluate(said) == "none"
    opened.page.emulate_media(media="print")
    assert opened.page.locator(".more").is_visible()
    assert opened.page.evaluate(said) == '"The first 4 of 9 rows."'
    opened.page.emulate_media(media="screen")
    opened.page.locator(".more").click()
    assert opened.page.locator(".more").count() == 0
    opened.context.close()


def test_the_page_s_policy_stops_a_script_that_is_not_its_own(browser: Any, study_page: Path, tmp_path: Path) -> None:
    text = study_page.read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(
        text.replace("</main>", "<script>document.title = 'taken over'</script></main>"), encoding="utf-8"
    )
    opened = Opened(browser, changed)
    assert opened.page.title().startswith("Study: mnist")
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.context.close()


@pytest.mark.parametrize("kind", ["finetune", "metatrain"])
def test_a_run_s_page_shows_its_charts_and_hostile_names(kind: str, browser: Any, make: Any, tmp_path: Path) -> None:
    folder = getattr(make, kind)(tmp_path / "run")
    opened = Opened(browser, write_report([folder], folder / "report.html")[0])
    assert opened.page.locator(".plot .main-svg").count() > 0
    if kind == "finetune":
        named = opened.page.locator(".plot .ytick").all_text_contents()
        assert SCRIPT in named
        assert "10" in named
    assert (opened.complaints, opened.outside()) == ([], [])
    opened.context.close()


def _several(make: Any, folder: Path) -> list[Path]:
    for place, activation in enumerate(("arelu", None)):
        for seed in (0, 1):
            make.finetune(folder / f"{place}-{seed}", wrong=2 + seed, seed=seed, activation=activation)
    return [folder]


def _pair(make: Any, folder: Path) -> list[Path]:
    return [make.finetune(folder / "a", wrong=2), make.finetune(folder / "b", wrong=6, activation=None)]


def _meta_pair(make: Any, folder: Path) -> list[Path]:
    return [make.metatrain(folder / "a"), make.metatrain(folder / "b", accuracy=0.7)]


@pytest.mark.parametrize(("runs", "compared"), [(_several, False), (_pair, True), (_meta_pair, True)])
@pytest.mark.parametrize("width", [360, 1100])
def test_pages_of_several_runs_draw_all_in_any_width_and_ask_for_nothing(
    runs: Callable[[Any, Path], list[Path]], compared: bool, width: int, browser: Any, make: Any, tmp_path: Path
) -> None:
    page = write_report(runs(make, tmp_path / "runs"), tmp_path / "page.html", compare=compared)[0]
    opened = Opened(browser, page, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert opened.page.locator(".plot").count() > 0
    assert opened.page.locator(".plot .main-svg").count() >= opened.page.locator(".plot").count()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert (opened.complaints, opened.outside()) == ([], [])
    opened.context.close()
