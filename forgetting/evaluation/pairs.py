"""Evaluations of two runs or experiments, in pairs of the same seed, for a comparison."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forgetting.errors import UserError
from forgetting.evaluation.finished import read_task
from forgetting.evaluation.naming import results_name, suites_in, task_path
from forgetting.evaluation.results import read_results
from forgetting.evaluation.suite import suite_path
from forgetting.evaluation.target import find_target, results_folders, target_names
from forgetting.run_folder import is_of_seed

Document = tuple[int | str, ...]
"""What two evaluations know a document by."""


@dataclass(frozen=True)
class Choice:
    """Which results of a target are compared.

    Attributes:
        suite: Its name; None takes the only one that both have.
        protocol: Of the evaluation.
        chat: Those of prompts in the chat template.
    """

    suite: str | None = None
    protocol: str = "corrected"
    chat: bool = False

    def file(self, suite: str) -> str:
        """Name of the results file."""
        return results_name(suite, self.protocol, chat=self.chat)

    def described(self) -> str:
        """For a message."""
        return f"the protocol {self.protocol}" + (" with the chat template" if self.chat else "")


@dataclass(frozen=True)
class Evaluation:
    """Results of one run, with the command that makes them again."""

    folder: Path
    file: Path
    content: dict[str, Any]
    again: str
    notes: list[str] = field(default_factory=list)

    def metric(self, task: str) -> str:
        """Name of the metric that is compared."""
        return self.content["tasks"][task]["metric"]

    def scores(self, task: str) -> dict[Document, float]:
        """The score of each document of a task.

        Raises:
            UserError: The metric is no mean over documents, or the file of the task is missing or damaged.
        """
        entry = self.content["tasks"][task]
        metric, identity = entry["metric"], entry["identity"]
        try:
            entry, records = read_task(task_path(self.file.parent, task, identity), identity)
        except UserError as error:
            raise UserError(f"{error} {self.again}") from None
        values = {(record["document"], record["hash"]): record["metrics"].get(metric) for record in records}
        return self.checked(task, values, entry["metrics"].get(metric))

    def checked(self, task: str, values: dict[Document, Any], mean: Any) -> dict[Document, float]:
        """The documents' values as numbers, whose mean is the task's.

        Raises:
            UserError: They are no numbers, or their mean is another.
        """
        numbers = {document: float(value) for document, value in values.items() if isinstance(value, (int, float))}
        found = math.fsum(numbers.values()) / len(numbers) if numbers and len(numbers) == len(values) else math.nan
        if not isinstance(mean, (int, float)) or not math.isclose(found, mean, abs_tol=1e-6):
            raise UserError(
                f"{self.metric(task)} of {task} in {self.folder} is no mean over documents: it cannot be compared. "
                "--tasks leaves it out."
            )
        return numbers

    def conditions(self, task: str) -> dict[str, Any]:
        """What two evaluations of a task must have in common, besides their documents."""
        entry = self.content["tasks"][task]
        return {
            "metric": self.metric(task), "version": entry.get("version"), "few-shot examples": entry.get("shots"),
        }  # fmt: skip

    def refuse_other_conditions(self, task: str, other: "Evaluation") -> None:
        """Refuse an evaluation whose score is not of the same kind.

        Raises:
            UserError: It is of another version of the task, say.
        """
        own, others = self.conditions(task), other.conditions(task)
        if different := [f"{name} {own[name]} and {others[name]}" for name in own if own[name] != others[name]]:
            raise UserError(
                f"{self.folder} and {other.folder} evaluated {task} differently: {', '.join(different)}. Evaluate one "
                "of them again as the other was; --tasks leaves a task out."
            )

    def refuse_other_documents(self, task: str, other: "Evaluation", own: set[Document], others: set[Document]) -> None:
        """Refuse an evaluation of other documents, or of other prompts.

        Raises:
            UserError: The documents are not the same.
        """
        if own == others:
            return
        same = len(own & others)
        other_prompts = len({document[:2] for document in own} & {document[:2] for document in others}) - same
        if other_prompts:
            raise UserError(
                f"{self.folder} and {other.folder} evaluated {task} with different prompts ({other_prompts} of "
                f"{len(own)}): the task's text, its few-shot examples or their seed differ. Evaluate one of them again "
                "as the other was; --tasks leaves a task out."
            )
        raise UserError(
            f"{self.folder} and {other.folder} evaluated {task} on different documents ({len(own)} and {len(others)}, "
            f"{same} of them the same): compare evaluations of the same data with the same fraction or --limit; "
            "--tasks leaves a task out."
        )


def _command(name: str, suite: str | None, choice: Choice, again: bool = True) -> str:
    """The command that makes results, for the end of a message. None is proposed that `evaluate` would refuse."""
    try:
        find_target(target_names(name)[0])
    except UserError as error:  # a folder of results alone, say
        return "Evaluate again what these are the results of." if again else f"It cannot be evaluated: {error}"
    if suite is None or suite == "main":
        given = ""
    elif suite_path(suite).is_file():
        given = f" --suite {suite}"
    else:  # results know a suite's name, not where its file lies
        given = " --tasks <the same>" if suite.startswith("tasks=") else f" --suite <the file of {suite}>"
    given += "" if choice.protocol == "corrected" else f" --protocol {choice.protocol}"
    given += " --apply-chat-template" if choice.chat else ""
    return f"Evaluate{' again' if again else ''}: python -m forgetting evaluate {name}{given}"


def _places(name: str) -> list[Path]:
    """Folders that may hold results of a target: its own, and itself where `--output` put them there."""
    folders, given = results_folders(name), Path(name).expanduser()
    return folders if given in folders or not given.is_dir() else [*folders, given]


def has_own_results(name: str) -> bool:
    """Tell whether a target has any results of `evaluate`."""
    return any(next(folder.glob("results.*.json"), None) for folder in _places(name))


def common_suite(a: str, b: str, choice: Choice) -> str:
    """Name of the only suite that two targets both have results of.

    Raises:
        UserError: There is none, or there are several.
    """
    of_both = []
    for name in (a, b):
        places = _places(name)
        suites = {suite for place in places for suite in suites_in(place, choice.protocol, choice.chat)}
        if not suites:
            raise UserError(
                f"There are no results (results.<suite>.json) of {choice.described()} of {name}, nor what `lm_eval "
                f"--output_path … --log_samples` writes: looked in {', '.join(map(str, places))}. "
                f"{_command(name, None, choice, again=False)}"
            )
        of_both.append(suites)
    common = sorted(of_both[0] & of_both[1])
    if not common:
        ours, theirs = (", ".join(sorted(suites)) for suites in of_both)
        raise UserError(f"{a} and {b} were evaluated on different suites: {ours} and {theirs}.")
    if len(common) > 1:
        raise UserError(f"{a} and {b} have results of several suites: give --suite {' or '.join(common)}.")
    return common[0]


def evaluations_of(
    name: str, suite: str, choice: Choice, seeds: Collection[str] | None = None
) -> dict[str, Evaluation]:
    """Evaluations of a target by the names of their folders: of an experiment its `seed-<n>` (or those in `seeds`).

    Raises:
        UserError: There are none.
    """
    file, places = choice.file(suite), results_folders(name)
    if seeds is not None:  # a base model's folder is no seed's
        places = [place for place in places if place.name in seeds or not is_of_seed(place.name)]
    folders = [place for place in places if (place / file).is_file()]
    if not folders and (Path(name).expanduser() / file).is_file():  # `--output` put them there
        folders = places = [Path(name).expanduser()]
    if not folders:
        raise UserError(
            f"There is no {file} of {name}: looked in {', '.join(map(str, _places(name)))}. "
            f"{_command(name, suite, choice, again=False)}"
        )
    again = _command(name, suite, choice)
    missing = [place.name for place in places if place not in folders]
    notes = [f"{name} has no {file} of {', '.join(missing)}."] if missing else []
    return {run.name: Evaluation(run, run / file, read_results(run / file, again), again, notes) for run in folders}


def pairs_of(
    of_a: dict[str, Evaluation], of_b: dict[str, Evaluation], a: str, b: str
) -> tuple[list[tuple[Evaluation, Evaluation]], list[str]]:
    """Pair the evaluations by seed, or each with the single one of the other side that is no seed's.

    A base model has no seed: nothing of it is drawn, and every run may be compared with it. One seed of a trained side
    is a draw, which against several would pass for a number without noise. So it is compared with its like alone or,
    where both sides are one run, with the other.

    Returns:
        The pairs, and a note on the seeds that only one side has.

    Raises:
        UserError: The two have no seed in common.
    """
    has_no_seed = any(len(side) == 1 and not is_of_seed(*side) for side in (of_a, of_b))
    if has_no_seed or len(of_a) == len(of_b) == 1:
        return [(run_a, run_b) for run_a in of_a.values() for run_b in of_b.values()], []
    shared = [name for name in of_a if name in of_b]
    if not shared:
        raise UserError(f"{a} and {b} have no seed in common: {', '.join(of_a)} and {', '.join(of_b)}.")
    alone = [f"{name} of {side}" for side, own, other in ((a, of_a, of_b), (b, of_b, of_a)) for name in own
             if name not in other]  # fmt: skip
    notes = [f"Without a partner, and left out: {', '.join(alone)}."] if alone else []
    return [(of_a[name], of_b[name]) for name in shared], notes


def common_tasks(
    pairs: list[tuple[Evaluation, Evaluation]], wanted: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """Tasks that every evaluation finished, in the order of the first.

    Args:
        pairs: Of evaluations.
        wanted: The tasks to compare; None takes all.

    Returns:
        The tasks, and a note on those that failed somewhere.

    Raises:
        UserError: There are none, some evaluations are of other tasks, or a wanted one is not finished everywhere.
    """
    evaluations = [evaluation for pair in pairs for evaluation in pair]
    finished = [
        {name for name, entry in evaluation.content["tasks"].items() if entry["status"] == "ok"}
        for evaluation in evaluations
    ]
    known = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.content["tasks"]))
    tasks = [name for name in known if name in set.intersection(*finished)]
    first, second = pairs[0][0].folder, pairs[0][1].folder
    if wanted is not None:
        if missing := [name for name in wanted if name not in tasks]:
            raise UserError(
                f"--tasks names {', '.join(missing)}; the tasks that {first} and {second} both finished are "
                f"{', '.join(tasks) or 'none'}."
            )
        return [name for name in tasks if name in wanted], []
    if not tasks:
        raise UserError(f"{first} and {second} have no finished task in common.")
    for evaluation in evaluations:
        if absent := [name for name in known if name not in evaluation.content["tasks"]]:
            raise UserError(
                f"{evaluation.folder} was not evaluated on {', '.join(absent)}, and another was. Compare the "
                f"tasks that both have: --tasks {' '.join(tasks)}"
            )
    others = [name for name in known if name not in tasks]
    return tasks, [f"Not finished in all, and left out: {', '.join(others)}."] if others else []
