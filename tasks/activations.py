"""Launch `arelu-meta activations`: `python tasks/activations.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["activations", *sys.argv[1:]]))
