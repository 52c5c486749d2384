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
from forgetting.evaluation.finished import read_task
from forgetting.evaluation.naming import results_name, suites_in, task_path
from forgetting.evaluation.results import read_results
from forgetting.paths import CONFIGS
from forgetting.run_folder import seed_folders

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


@dataclass(frozen=True)
class _Evaluation:
    folder: Path
    file: Path
    content: dict[str, Any]
    again: str

    def values(self, task: str) -> tuple[list[tuple[int, str]], Float[np.ndarray, "documents"]]:
        """The documents of a task and their scores."""
        entry = self.content["tasks"][task]
        metric, identity = entry["metric"], entry["identity"]
        try:
            entry, records = read_task(task_path(self.file.parent, task, identity), identity)
        except UserError as error:
            raise UserError(f"{error} {self.again}") from None
        scores = [record["metrics"].get(metric) for record in records]
        value = entry["metrics"].get(metric)
        numbers = [float(score) for score in scores if isinstance(score, (int, float))]
        mean = math.fsum(numbers) / len(numbers) if numbers and len(numbers) == len(scores) else math.nan
        if value is None or not math.isclose(mean, value, abs_tol=1e-6):
            raise UserError(f"{metric} of {task} in {self.folder} is no mean over documents: it cannot be compared.")
        return [(record["document"], record["hash"]) for record in records], np.array(numbers, dtype=np.float64)


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
    suite = suite or _common_suite(a, b, protocol)
    pairs = _pairs(_evaluations(a, suite, protocol, seeds), _evaluations(b, suite, protocol, seeds), a, b)
    tasks = _common_tasks(pairs)
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
        by_column.append(combine("average", [one.name for one in by_column]))
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


def _command(folder: Path, suite: str | None, protocol: str) -> str:
    if suite is None or suite == "main":
        given = ""
    elif (CONFIGS / "evaluation" / f"{suite}.yaml").is_file():
        given = f" --suite {suite}"
    else:  # results know a suite's name, not where its file lies
        given = " --tasks <the same>" if suite.startswith("tasks=") else f" --suite <the file of {suite}>"
    given += "" if protocol == "corrected" else f" --protocol {protocol}"
    return f"Evaluate again: python -m forgetting evaluate {folder}{given}"


def _common_suite(a: Path, b: Path, protocol: str) -> str:
    found = []
    for folder in (a, b):
        places = [*seed_folders(folder), folder]
        suites = {suite for place in places for suite in suites_in(place, protocol)}
        if not suites:
            raise UserError(
                f"There are no results (results.<suite>.json) of the protocol {protocol} in {folder}, nor in a "
                f"seed-<n> folder of it. {_command(folder, None, protocol).replace(' again', '')}"
            )
        found.append(suites)
    common = sorted(found[0] & found[1])
    if not common:
        ours, theirs = (", ".join(sorted(suites)) for suites in found)
        raise UserError(f"{a} and {b} were evaluated on different suites: {ours} and {theirs}.")
    if len(common) > 1:
        raise UserError(f"{a} and {b} have results of several suites: give --suite {' or '.join(common)}.")
    return common[0]


def _evaluations(folder: Path, suite: str, protocol: str, seeds: Collection[str] | None) -> dict[str, _Evaluation]:
    name, again = results_name(suite, protocol), _command(folder, suite, protocol)
    folders = [one for one in seed_folders(folder) if (one / name).is_file() and (seeds is None or one.name in seeds)]
    if not folders and (folder / name).is_file():
        folders = [folder]
    if not folders:
        raise UserError(
            f"There is no {name} in {folder}, nor in a seed-<n> folder of it. {again.replace(' again', '')}"
        )
    return {one.name: _Evaluation(one, one / name, read_results(one / name, again), again) for one in folders}


def _pairs(
    mine: dict[str, _Evaluation], other: dict[str, _Evaluation], a: Path, b: Path
) -> list[tuple[_Evaluation, _Evaluation]]:
    if len(mine) == 1 or len(other) == 1:
        return [(one, two) for one in mine.values() for two in other.values()]
    shared = sorted(set(mine) & set(other))
    if not shared:
        raise UserError(f"{a} and {b} have no seed in common: {', '.join(mine)} and {', '.join(other)}.")
    return [(mine[name], other[name]) for name in shared]


def _common_tasks(pairs: list[tuple[_Evaluation, _Evaluation]]) -> list[str]:
    """Tasks that every evaluation finished, in the first one's order."""
    everywhere = [one.content["tasks"] for pair in pairs for one in pair]
    tasks = [
        name
        for name in everywhere[0]
        if all(name in entries and entries[name]["status"] == "ok" for entries in everywhere)
    ]
    if not tasks:
        raise UserError(f"{pairs[0][0].folder} and {pairs[0][1].folder} have no finished task in common.")
    return tasks


def _scores(
    pairs: list[tuple[_Evaluation, _Evaluation]], task: str
) -> tuple[Float[np.ndarray, "pairs documents"], Float[np.ndarray, "pairs documents"]]:
    documents, _ = pairs[0][0].values(task)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for pair in pairs:
        for side, one in zip(sides, pair, strict=True):
            mine, scores = one.values(task)
            if mine != documents:
                raise UserError(
                    f"{pairs[0][0].folder} and {one.folder} evaluated {task} on different documents ({len(documents)} "
                    f"and {len(mine)}): compare runs evaluated on the same data with the same share."
                )
            side.append(scores)
    return np.stack(sides[0]), np.stack(sides[1])


def _resampled_means(
    differences: Float[np.ndarray, "pairs documents"], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "resamples pairs"]:
    """Means over documents drawn with replacement, the same draw for all pairs; in parts, to bound the memory."""
    num_documents = differences.shape[1]
    share = np.full(num_documents, 1 / num_documents)
    part = max(1, min(resamples, 4_000_000 // num_documents))
    parts = [
        generator.multinomial(num_documents, share, size=min(part, resamples - start)) @ differences.T
        for start in range(0, resamples, part)
    ]
    return np.concatenate(parts) / num_documents
