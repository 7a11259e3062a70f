"""Hold fine-tuning's defaults against a sweep of twelve points: `python -m experiments.default_sweep --seeds 3`.

It goes on where it stopped; `--table true` prints what is there.
"""

import sys

from jsonargparse import ArgumentParser

from arelu_meta.errors import InputError, nearest_names
from arelu_meta.exit_status import guarded
from experiments.default_sweep.sweep import SETS, DefaultsConfig, sweep_defaults


def main() -> int:
    """Parse, and run or print the sweep.

    Returns:
        The exit status: 0 done, 2 bad input, 3 a run could not go on, 130 interrupted.
    """
    parser = ArgumentParser(description=__doc__)
    parser.add_class_arguments(DefaultsConfig)
    config = DefaultsConfig(**vars(parser.parse_args()))
    return guarded(lambda: _sweep(config))


def _sweep(config: DefaultsConfig) -> None:
    for name in config.data:
        if name not in SETS:
            raise InputError(f"data: {name!r} is not known; {nearest_names(name, SETS)}")
    if config.seeds < 1:
        raise InputError(f"seeds: {config.seeds} is not allowed; give a number at least 1")
    sweep_defaults(config)


if __name__ == "__main__":
    sys.exit(main())
