"""Launch `arelu-meta sweep`: `python tasks/sweep.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
