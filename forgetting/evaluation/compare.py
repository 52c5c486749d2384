"""Two evaluations document by document: the difference, and how sure it is."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from forgetting.errors import UserError
from forgetting.evaluation.pairs import Evaluation, common_suite, common_tasks, evaluations_in, pairs_of

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A − B in percentage points, with an interval.

    Attributes:
        name: Of the task, the column, or `average`.
        a: Mean of A over documents and seeds, in percent.
        b: Mean of B.
        difference: a − b.
        low: Lower end of the interval, which spans the two below.
        high: Upper end.
        documents: How many documents stand behind it.
        seeds: How many pairs of runs.
        bootstrap: Interval over documents and pairs. It alone is too short for few pairs that differ.
        over_seeds: Student's t interval of the pairs' differences; None for one pair. It alone knows of no other
            documents.
    """

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    documents: int
    seeds: int
    bootstrap: Interval
    over_seeds: Interval | None


def compare(
    a: Path, b: Path, protocol: str = "corrected", confidence: float = 0.95, resamples: int = 10_000, seed: int = 0,
    suite: str | None = None, seeds: Collection[str] | None = None,
) -> tuple[list[Difference], list[Difference]]:  # fmt: skip
    """Compare two runs, or two experiments seed by seed.

    The interval spans two. A paired bootstrap: a resample draws the documents of every task with replacement and, where
    there are several pairs of runs, the pairs (the same in all tasks). And, from two pairs on, Student's t interval of
    the pairs' differences: with three pairs that differ strongly the bootstrap alone would cover only three quarters.

    Args:
        a: Folder with results, or one that holds such folders as `seed-<n>`.
        b: The same; where only one side has several seeds, each is compared with the other's single run.
        protocol: Whose results.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        suite: Whose results; None takes the only suite that both have.
        seeds: Names of the seeds' folders to compare, such as `seed-0`; None takes all.

    Returns:
        The differences of the tasks; those of the columns, and of their average when no column is missing.

    Raises:
        UserError: Results are missing or damaged, the two were not evaluated on the same documents, or a number is out
            of its range.
    """
    _refuse_numbers(confidence, resamples, seed)
    suite = suite or common_suite(a, b, protocol)
    pairs = pairs_of(evaluations_in(a, suite, protocol, seeds), evaluations_in(b, suite, protocol, seeds), a, b)
    tasks = common_tasks(pairs)
    generator = np.random.default_rng(seed)
    num_pairs = len(pairs)
    pair_weights = generator.multinomial(num_pairs, [1 / num_pairs] * num_pairs, size=resamples) / num_pairs
    means: dict[str, tuple[float, float, int]] = {}
    by_pair: dict[str, Float[np.ndarray, "pairs"]] = {}
    resampled: dict[str, Float[np.ndarray, "resamples"]] = {}
    for task in tasks:
        scores_a, scores_b = _scores(pairs, task)
        means[task] = (100 * scores_a.mean(), 100 * scores_b.mean(), scores_a.shape[1])
        by_pair[task] = 100 * (scores_a - scores_b).mean(axis=1)
        draws = _resampled_means(100 * (scores_a - scores_b), resamples, generator)
        resampled[task] = (draws * pair_weights).sum(axis=1)

    def combine(name: str, members: list[str]) -> Difference:
        parts = [means[member] for member in members]
        mean_a, mean_b = (math.fsum(part[side] for part in parts) / len(parts) for side in (0, 1))
        draws = np.mean([resampled[member] for member in members], axis=0)
        means[name], resampled[name] = (mean_a, mean_b, sum(part[2] for part in parts)), draws
        by_pair[name] = np.mean([by_pair[member] for member in members], axis=0)
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        bootstrap, over_seeds = (float(low), float(high)), student_interval(by_pair[name], confidence)
        ends = [*bootstrap, *(over_seeds or ())]
        return Difference(name, mean_a, mean_b, mean_a - mean_b, min(ends), max(ends), means[name][2], num_pairs,
                          bootstrap, over_seeds)  # fmt: skip

    by_task = [combine(task, [task]) for task in tasks]
    columns = pairs[0][0].content["columns"]
    whole = {name: column["tasks"] for name, column in columns.items() if set(column["tasks"]) <= set(tasks)}
    by_column = [combine(f"column {name}", members) for name, members in whole.items()]
    if len(whole) == len(columns):
        by_column.append(combine("average", [column.name for column in by_column]))
    return by_task, by_column


def _refuse_numbers(confidence: float, resamples: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"The confidence is {confidence}; it must be between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise UserError(f"There are {resamples} resamples; at least 1 is needed, and some thousands are usual.")
    if seed < 0:
        raise UserError(f"The bootstrap's seed is {seed}; it must be at least 0.")


def student_interval(differences: Float[np.ndarray, "pairs"], confidence: float) -> Interval | None:
    """The interval that covers the mean over all seeds, if the pairs' differences are normal."""
    number = len(differences)
    if number < 2:
        return None
    half = stdtrit(number - 1, (1 + confidence) / 2) * differences.std(ddof=1) / math.sqrt(number)
    return float(differences.mean() - half), float(differences.mean() + half)


def _scores(
    pairs: list[tuple[Evaluation, Evaluation]], task: str
) -> tuple[Float[np.ndarray, "pairs documents"], Float[np.ndarray, "pairs documents"]]:
    documents, _ = pairs[0][0].values(task)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for pair in pairs:
        for side, evaluation in zip(sides, pair, strict=True):
            evaluated, scores = evaluation.values(task)
            if evaluated != documents:
                raise UserError(
                    f"{pairs[0][0].folder} and {evaluation.folder} evaluated {task} on different documents "
                    f"({len(documents)} and {len(evaluated)}): compare runs evaluated on the same data with the same "
                    "fraction."
                )
            side.append(scores)
    return np.stack(sides[0]), np.stack(sides[1])


def _resampled_means(
    differences: Float[np.ndarray, "pairs documents"], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "resamples pairs"]:
    """Means over documents drawn with replacement, the same draw for all pairs; in parts, to bound the memory."""
    num_documents = differences.shape[1]
    weights = np.full(num_documents, 1 / num_documents)
    part = max(1, min(resamples, 4_000_000 // num_documents))
    parts = [
        generator.multinomial(num_documents, weights, size=min(part, resamples - start)) @ differences.T
        for start in range(0, resamples, part)
    ]
    return np.concatenate(parts) / num_documents
