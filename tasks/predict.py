"""Launch `arelu-meta predict`: `python tasks/predict.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
