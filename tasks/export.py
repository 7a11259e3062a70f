"""Launch `arelu-meta export`: `python tasks/export.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
