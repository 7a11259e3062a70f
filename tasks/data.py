"""Launch `arelu-meta data`: `python tasks/data.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
