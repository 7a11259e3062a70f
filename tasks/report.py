"""Launch `arelu-meta report`: `python tasks/report.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
