"""`python -m arelu_meta TASK …` is `arelu-meta TASK …`."""

import sys

from arelu_meta.cli import main

if __name__ == "__main__":
    sys.exit(main())
