"""Launch `arelu-meta metatrain`: `python tasks/metatrain.py …` takes the same arguments."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["metatrain", *sys.argv[1:]]))
