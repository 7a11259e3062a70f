"""Launch `arelu-meta demo`: `python tasks/demo.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
