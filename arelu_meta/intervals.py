"""95 % confidence intervals of an accuracy."""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Interval of a share of independent images.

    Args:
        successes: images classified rightly.
        trials: images.

    Returns:
        Low and high end, as fractions.

    Source: Wilson 1927, through scipy.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_interval(accuracies: Sequence[float]) -> tuple[float, float, float]:
    """Mean accuracy of independent tasks or runs with its interval, as `mean_interval`, within [0, 1].

    Args:
        accuracies: one a task or run, fractions; at least 2.

    Returns:
        Mean, low and high end: with few tasks Student's interval reaches beyond what an accuracy can be.
    """
    mean, low, high = mean_interval(accuracies)
    return mean, max(0.0, low), min(1.0, high)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent tasks or runs with Student's t interval.

    Args:
        values: one accuracy a task or run; at least 2.

    Returns:
        Mean, low and high end; for an accuracy the ends may lie a little outside [0, 1].
    """
    from scipy.stats import t

    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers)))
    return mean, mean - half, mean + half
