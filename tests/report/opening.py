"""How large a report's page is and how long it takes to open, in the machine's Chromium: `opening.py PAGE …`."""

import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from arelu_meta.runs.environment import environment

ROUNDS = 5


def main(pages: list[str]) -> None:
    """Print each page's size, and the median time until all of its charts are drawn.

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
            seconds = []
            for _ in range(ROUNDS):
                tab = browser.new_page()
                started = time.perf_counter()
                tab.goto(page.resolve().as_uri())
                tab.wait_for_selector("html[data-drawn]", state="attached")
                seconds.append(time.perf_counter() - started)
                tab.close()
            print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, {median(seconds):.2f} s", flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
