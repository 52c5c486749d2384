"""Evaluations of two runs or experiments, in pairs of the same seed, for a comparison."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from forgetting.errors import UserError
from forgetting.evaluation.finished import read_task
from forgetting.evaluation.naming import results_name, suites_in, task_path
from forgetting.evaluation.results import read_results
from forgetting.evaluation.suite import suite_path
from forgetting.run_folder import seed_folders


@dataclass(frozen=True)
class Evaluation:
    """Results of one run, with the command that makes them again."""

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


def _command(folder: Path, suite: str | None, protocol: str) -> str:
    if suite is None or suite == "main":
        given = ""
    elif suite_path(suite).is_file():
        given = f" --suite {suite}"
    else:  # results know a suite's name, not where its file lies
        given = " --tasks <the same>" if suite.startswith("tasks=") else f" --suite <the file of {suite}>"
    given += "" if protocol == "corrected" else f" --protocol {protocol}"
    return f"Evaluate again: python -m forgetting evaluate {folder}{given}"


def common_suite(a: Path, b: Path, protocol: str) -> str:
    """Name of the only suite that two folders both have results of.

    Raises:
        UserError: There is none, or there are several.
    """
    of_both = []
    for folder in (a, b):
        places = [*seed_folders(folder), folder]
        suites = {suite for place in places for suite in suites_in(place, protocol)}
        if not suites:
            raise UserError(
                f"There are no results (results.<suite>.json) of the protocol {protocol} in {folder}, nor in a "
                f"seed-<n> folder of it. {_command(folder, None, protocol).replace(' again', '')}"
            )
        of_both.append(suites)
    common = sorted(of_both[0] & of_both[1])
    if not common:
        ours, theirs = (", ".join(sorted(suites)) for suites in of_both)
        raise UserError(f"{a} and {b} were evaluated on different suites: {ours} and {theirs}.")
    if len(common) > 1:
        raise UserError(f"{a} and {b} have results of several suites: give --suite {' or '.join(common)}.")
    return common[0]


def evaluations_in(
    folder: Path, suite: str, protocol: str, seeds: Collection[str] | None = None
) -> dict[str, Evaluation]:
    """Evaluations of a folder by the names of their folders: its `seed-<n>` (or those in `seeds`), or itself.

    Raises:
        UserError: There are none.
    """
    name, again = results_name(suite, protocol), _command(folder, suite, protocol)
    folders = [run for run in seed_folders(folder) if (run / name).is_file() and (seeds is None or run.name in seeds)]
    if not folders and (folder / name).is_file():
        folders = [folder]
    if not folders:
        raise UserError(
            f"There is no {name} in {folder}, nor in a seed-<n> folder of it. {again.replace(' again', '')}"
        )
    return {run.name: Evaluation(run, run / name, read_results(run / name, again), again) for run in folders}


def pairs_of(
    of_a: dict[str, Evaluation], of_b: dict[str, Evaluation], a: Path, b: Path
) -> list[tuple[Evaluation, Evaluation]]:
    """Pair the evaluations by seed, or each with the single one of the other side.

    Raises:
        UserError: The two have no seed in common.
    """
    if len(of_a) == 1 or len(of_b) == 1:
        return [(run_a, run_b) for run_a in of_a.values() for run_b in of_b.values()]
    shared = sorted(set(of_a) & set(of_b))
    if not shared:
        raise UserError(f"{a} and {b} have no seed in common: {', '.join(of_a)} and {', '.join(of_b)}.")
    return [(of_a[name], of_b[name]) for name in shared]


def common_tasks(pairs: list[tuple[Evaluation, Evaluation]]) -> list[str]:
    """Tasks that every evaluation finished, in the order of the first.

    Raises:
        UserError: There are none.
    """
    everywhere = [evaluation.content["tasks"] for pair in pairs for evaluation in pair]
    finished = [{name for name, entry in tasks.items() if entry["status"] == "ok"} for tasks in everywhere]
    tasks = [name for name in everywhere[0] if name in set.intersection(*finished)]
    if not tasks:
        raise UserError(f"{pairs[0][0].folder} and {pairs[0][1].folder} have no finished task in common.")
    return tasks
