"""How large a report's page is and how long it takes to open, in the machine's Chromium: `opening.py PAGE …`.

A page is readable when its text is painted (its tables sort when it has loaded, right after), open when everything in
sight is drawn and answers, and whole when the charts further down are drawn, which happens while nobody waits. Nearly
all of it is the evaluation of plotly.js.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from arelu_meta.runs.environment import environment

ROUNDS = 5
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main(pages: list[str]) -> None:
    """Print each page's size, and the median times until it is readable, open and whole.

    Args:
        pages: HTML files.
    """
    found = environment()
    print(f"{found['processor']}, {found['cores']} cores; median of {ROUNDS}, each in a fresh tab")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"]
        )
        for page in map(Path, pages):
            painted: list[float] = []
            opened: list[float] = []
            drawn: list[float] = []
            for _ in range(ROUNDS):
                tab = browser.new_page()
                started = time.perf_counter()
                tab.goto(page.resolve().as_uri())
                for times, attribute in ((opened, "data-opened"), (drawn, "data-drawn")):
                    tab.wait_for_selector(f"html[{attribute}]", state="attached")
                    times.append(time.perf_counter() - started)
                painted.append(tab.evaluate(_FIRST_PAINT) / 1000)
                tab.close()
            size = page.stat().st_size / 1e6
            print(f"{page}: {size:.1f} MB, readable in {median(painted):.2f} s, ", end="")
            print(f"open in {median(opened):.2f} s, whole in {median(drawn):.2f} s", flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
