"""Two evaluations document by document: the difference, and how sure it is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.evaluation.results import holds_records, read_records, results_name, samples_path
from forgetting.run import seed_folders


@dataclass(frozen=True)
class Difference:
    """A − B in percentage points, with a bootstrap interval.

    Attributes:
        name: Of the task, the column, or `average`.
        a: Mean of A over documents and seeds, in percent.
        b: Mean of B.
        difference: a − b.
        low: Lower end of the interval.
        high: Upper end.
        documents: How many documents stand behind it.
        seeds: How many pairs of runs.
    """

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    documents: int
    seeds: int


@dataclass(frozen=True)
class _Evaluation:
    folder: Path
    content: dict[str, Any]

    def values(self, task: str) -> tuple[list[tuple[int, str]], Float[np.ndarray, "documents"]]:
        """The documents of a task and their scores."""
        entry = self.content["tasks"][task]
        protocol = self.content["protocol"]
        file = samples_path(self.folder / results_name(protocol), protocol, task)
        if not holds_records(file, entry["identity"], whole=False):
            raise UserError(f"{file} is missing or of another evaluation: evaluate {self.folder} again.")
        records = read_records(file)
        scores = np.array([record["metrics"][entry["metric"]] for record in records], dtype=np.float64)
        if not math.isclose(scores.mean(), entry["metrics"][entry["metric"]], abs_tol=1e-6):
            raise UserError(
                f"{entry['metric']} of {task} in {self.folder} is no mean over documents: it cannot be compared."
            )
        return [(record["document"], record["hash"]) for record in records], scores


def compare(
    a: Path, b: Path, protocol: str = "corrected", confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[list[Difference], list[Difference]]:
    """Compare two runs, or two experiments seed by seed, by a paired bootstrap.

    A resample draws the documents of every task with replacement and, where there are several pairs of runs, the pairs
    (the same in all tasks). The interval covers what another draw of documents, and of seeds, would have changed; with
    three seeds its part from the seeds is coarse.

    Args:
        a: Folder with `results.json`, or one that holds such folders as `seed-<n>`.
        b: The same; where only one side has several seeds, each is compared with the other's single run.
        protocol: Whose results.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The differences of the tasks; those of the columns, and of their average when no column is missing.

    Raises:
        UserError: Results are missing, or the two were not evaluated on the same documents.
    """
    pairs = _pairs(_evaluations(a, protocol), _evaluations(b, protocol), a, b)
    tasks = _common_tasks(pairs)
    generator = np.random.default_rng(seed)
    num_pairs = len(pairs)
    pair_weights = generator.multinomial(num_pairs, [1 / num_pairs] * num_pairs, size=resamples) / num_pairs
    means: dict[str, tuple[float, float, int]] = {}
    resampled: dict[str, Float[np.ndarray, "resamples"]] = {}
    for task in tasks:
        scores_a, scores_b = _scores(pairs, task)
        means[task] = (100 * scores_a.mean(), 100 * scores_b.mean(), scores_a.shape[1])
        by_pair = _resampled_means(100 * (scores_a - scores_b), resamples, generator)
        resampled[task] = (by_pair * pair_weights).sum(axis=1)

    def combine(name: str, members: list[str]) -> Difference:
        parts = [means[member] for member in members]
        mean_a, mean_b = (math.fsum(part[side] for part in parts) / len(parts) for side in (0, 1))
        draws = np.mean([resampled[member] for member in members], axis=0)
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        means[name], resampled[name] = (mean_a, mean_b, sum(part[2] for part in parts)), draws
        return Difference(name, mean_a, mean_b, mean_a - mean_b, float(low), float(high), means[name][2], num_pairs)

    by_task = [combine(task, [task]) for task in tasks]
    columns = pairs[0][0].content["columns"]
    whole = {name: column["tasks"] for name, column in columns.items() if set(column["tasks"]) <= set(tasks)}
    by_column = [combine(f"column {name}", members) for name, members in whole.items()]
    if len(whole) == len(columns):
        by_column.append(combine("average", [one.name for one in by_column]))
    return by_task, by_column


def _evaluations(folder: Path, protocol: str) -> dict[str, _Evaluation]:
    folders = [one for one in seed_folders(folder) if (one / results_name(protocol)).is_file()]
    if not folders and (folder / results_name(protocol)).is_file():
        folders = [folder]
    if not folders:
        raise UserError(
            f"There is no {results_name(protocol)} in {folder}, nor in a seed-<n> folder of it. Evaluate it first: "
            f"python -m forgetting evaluate {folder} --protocol {protocol}"
        )
    return {one.name: _Evaluation(one, read_json(one / results_name(protocol))) for one in folders}


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
