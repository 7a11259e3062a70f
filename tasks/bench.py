"""Launch `arelu-meta bench`: `python tasks/bench.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
