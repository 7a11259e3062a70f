"""Launch `arelu-meta recipes`: `python tasks/recipes.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["recipes", *sys.argv[1:]]))
