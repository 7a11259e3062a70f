"""Launch `arelu-meta swap`: `python tasks/swap.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["swap", *sys.argv[1:]]))
