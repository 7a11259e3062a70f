"""Run or print the study of starts: `python -m experiments.init_study --config experiments/init_study/screening.yaml`.

Start it as often as there are cores to spare: the processes share the runs, and none is run twice. `--table true`
prints what is there.
"""

import sys

from jsonargparse import ArgumentParser

from arelu_meta.exit_status import guarded
from experiments.init_study.study import StudyConfig, study_task


def main() -> int:
    """Parse, and run or print the study.

    Returns:
        The exit status: 0 done, 2 bad input, 3 a run could not go on, 130 interrupted.
    """
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with the stage")
    parser.add_class_arguments(StudyConfig)
    arguments = parser.parse_args()
    arguments.pop("config", None)
    return guarded(lambda: study_task(StudyConfig(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())
