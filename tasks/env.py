"""Launch `arelu-meta env`: `python tasks/env.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["env", *sys.argv[1:]]))
