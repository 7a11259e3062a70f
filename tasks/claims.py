"""Launch `arelu-meta claims`: `python tasks/claims.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["claims", *sys.argv[1:]]))
