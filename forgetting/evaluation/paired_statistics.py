"""Statistics of paired differences: intervals, tests, and the smallest difference that a comparison would detect.

Everything here takes the scores of the same documents (or the means of the same seeds) on two sides.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit
from scipy.stats import binomtest

Interval = tuple[float, float]

MEMORY = 4_000_000
"""Numbers that a resampling holds at once."""


def is_binary(*scores: Float[np.ndarray, "..."]) -> bool:
    """Tell whether all scores are 0 or 1: right or wrong."""
    return all(bool(np.isin(values, (0, 1)).all()) for values in scores)


def resampled_means(
    differences: Float[np.ndarray, "pairs documents"], binary: bool, resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "resamples pairs"]:
    """Means of differences over documents drawn with replacement, the same draw for all pairs.

    Where few of n right-or-wrong documents are answered differently, a plain bootstrap's interval is too short, and
    with none it has no length at all. So half a document is added to each of the four cells (both right, both wrong,
    only A, only B), as Agresti and Min do to Wald's interval (Simple improved confidence intervals for comparing
    matched proportions, Statistics in Medicine 24, 2005), and n + 2 are drawn.

    Args:
        differences: A − B.
        binary: Scores are 0 or 1.
        resamples: How many means.
        generator: Draws the documents.
    """
    weights = np.ones(differences.shape[1])
    if binary:
        cells = np.tile([1.0, -1.0, 0.0], (len(differences), 1))
        differences, weights = np.concatenate([differences, cells], axis=1), np.concatenate([weights, [0.5, 0.5, 1.0]])
    number = int(weights.sum())
    part = max(1, min(resamples, MEMORY // number))  # in parts, to bound the memory
    parts = [
        generator.multinomial(number, weights / weights.sum(), size=min(part, resamples - start)) @ differences.T
        for start in range(0, resamples, part)
    ]
    return np.concatenate(parts) / number


def percentile_interval(
    draws: Float[np.ndarray, "resamples *columns"], confidence: float
) -> Float[np.ndarray, "2 *columns"]:
    """The central interval that holds this fraction of the draws; one per column."""
    return np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def student_interval(differences: Float[np.ndarray, "items"], confidence: float) -> Interval | None:
    """The interval that covers the mean over all seeds, if the pairs' differences are normal; None of one."""
    number = len(differences)
    if number < 2:
        return None
    half = stdtrit(number - 1, (1 + confidence) / 2) * differences.std(ddof=1) / math.sqrt(number)
    return float(differences.mean() - half), float(differences.mean() + half)


def student_p(differences: Float[np.ndarray, "items"]) -> float | None:
    """Two-sided p of Student's paired t test of a mean difference of 0; None of one difference."""
    if len(differences) < 2:
        return None
    mean, error = abs(differences.mean()), differences.std(ddof=1) / math.sqrt(len(differences))
    if error == 0:
        return float(mean == 0)
    return float(2 * stdtr(len(differences) - 1, -mean / error))


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: were the documents that one side alone answers a fair coin's?

    Args:
        only_a: Documents that only A answers rightly.
        only_b: Those that only B does.
    """
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family of tests: the smallest times their number, the next times one fewer, and so on.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable_difference(
    differences: Float[np.ndarray, "items"], power: float = 0.8, level: float = 0.05
) -> float | None:
    """The smallest true difference that a two-sided test at `level` finds with probability `power`.

    (t[1 − level/2] + t[power]) · s / √n, with the standard deviation s of the n paired differences and Student's
    quantiles for n − 1 degrees of freedom: Bloom, Minimum detectable effects, Evaluation Review 19, 1995. For many
    documents it is Miller's for evaluations (arXiv 2411.00640, section 5), 2.80 · s / √n. Of right-or-wrong scores,
    s² is the fraction of documents that only one side answers, less the squared difference, times n / (n − 1).

    Returns:
        In the unit of the differences; None where they are all the same, which says nothing about their spread.
    """
    number = len(differences)
    if number < 2 or np.ptp(differences) == 0:
        return None
    quantiles = stdtrit(number - 1, 1 - level / 2) + stdtrit(number - 1, power)
    return float(quantiles * differences.std(ddof=1) / math.sqrt(number))
