"""Launch `arelu-meta race`: `python tasks/race.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["race", *sys.argv[1:]]))
