"""Two evaluations document by document: the difference, and how sure it is."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from forgetting.errors import UserError
from forgetting.evaluation.harness_output import HarnessOutput, harness_output
from forgetting.evaluation.paired_statistics import (
    Interval,
    detectable_difference,
    holm,
    is_binary,
    mcnemar_p,
    percentile_interval,
    resampled_means,
    student_interval,
    student_p,
)
from forgetting.evaluation.pairs import (
    Choice,
    Evaluation,
    common_suite,
    common_tasks,
    evaluations_of,
    has_own_results,
    pairs_of,
)

Scores = Float[np.ndarray, "pairs documents"]


@dataclass(frozen=True)
class PairedTest:
    """A test of one task's difference.

    Attributes:
        metric: What is compared.
        only_a: Documents that A alone answers rightly; None where scores are not 0 or 1, or there are several pairs.
        only_b: Those that B alone does.
        p: Of McNemar's exact test where `only_a` is known, else of Student's paired t test over documents; with several
            pairs of runs the larger one of that on the documents' means and of a t test over the pairs. 1 of a single
            document.
        adjusted_p: Holm's, over all tasks compared.
        detectable: The smallest true difference, in percentage points, that would be found with 80% power at the 5%
            level; None where nothing differs.
    """

    metric: str
    only_a: int | None
    only_b: int | None
    p: float
    adjusted_p: float
    detectable: float | None


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
        test: Of a task; None of a column and of the average.
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
    test: PairedTest | None = None


class Comparison(NamedTuple):
    """The differences of two evaluations.

    Attributes:
        tasks: Of the tasks.
        columns: Of the columns, and of their average when no column is missing; of the output of the harness's command,
            which has no columns, the average over tasks.
        notes: What was left out, and which of several evaluations was taken.
    """

    tasks: list[Difference]
    columns: list[Difference]
    notes: list[str]


def compare(
    a: Path | str, b: Path | str, protocol: str = "corrected", confidence: float = 0.95, resamples: int = 10_000,
    seed: int = 0, suite: str | None = None, seeds: Collection[str] | None = None, chat: bool = False,
    metrics: Mapping[str, str] | None = None, tasks: Collection[str] | None = None,
) -> Comparison:  # fmt: skip
    """Compare two runs, or two experiments seed by seed, or two outputs of the harness's own command.

    The interval spans two. A paired bootstrap: a resample draws the documents of every task with replacement and, where
    there are several pairs of runs, the pairs (the same in all tasks). And, from two pairs on, Student's t interval of
    the pairs' differences: with three pairs that differ strongly the bootstrap alone would cover only three quarters.

    Args:
        a: What `evaluate` takes, a folder with its results, or a folder or file that `lm_eval --output_path …
            --log_samples` wrote.
        b: The same. What has no seed, such as a base model, is compared with each seed of the other.
        protocol: Whose results.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        suite: Whose results; None takes the only suite that both have.
        seeds: Names of the seeds' folders to compare, such as `seed-0`; None takes all.
        chat: Results of prompts in the chat template.
        metrics: task → metric, or `metric,filter`, of the output of the harness's command; by default the first filter,
            and the first metric of which more is better.
        tasks: Names of the tasks to compare; None takes all.

    Raises:
        UserError: Results are missing or damaged, the two were not evaluated on the same tasks, versions of them,
            few-shot examples, documents and metrics, or a number is out of its range.
    """
    _refuse_numbers(confidence, resamples, seed)
    names, choice = (str(a), str(b)), Choice(suite, protocol, chat)
    pairs, notes = _pairs(names, choice, seeds, metrics or {})
    common, left_out = common_tasks(pairs, tasks)
    notes += left_out
    scores = {task: _scores(pairs, task) for task in common}
    columns = pairs[0][0].content["columns"]
    by_task, by_column = _differences(scores, {n: c["tasks"] for n, c in columns.items()}, confidence, resamples, seed)
    tests = [_test(pairs[0][0].metric(task), *of_both) for task, of_both in scores.items()]
    adjusted = holm([test.p for test in tests])
    tests = [replace(test, adjusted_p=p) for test, p in zip(tests, adjusted, strict=True)]
    by_task = [replace(row, test=test) for row, test in zip(by_task, tests, strict=True)]
    return Comparison(by_task, by_column, notes)


def _pairs(
    names: tuple[str, str], choice: Choice, seeds: Collection[str] | None, metrics: Mapping[str, str]
) -> tuple[list[tuple[Evaluation, Evaluation]], list[str]]:
    """The pairs of evaluations, of one run each, and notes on what has no partner."""
    # A file is none of `evaluate`'s targets.
    outputs = [
        None if not Path(name).expanduser().is_file() and has_own_results(name) else harness_output(name, metrics)
        for name in names
    ]
    of_harness = [output for output in outputs if output is not None]
    if len(of_harness) == 1:
        other = outputs.index(None)
        if not has_own_results(names[other]):
            raise UserError(
                f"{names[1 - other]} holds output of `lm_eval`, and {names[other]} none: a folder that `lm_eval "
                "--output_path … --log_samples` wrote was expected."
            )
        raise UserError(
            f"{names[1 - other]} holds output of `lm_eval`, and {names[other]} results of `evaluate`: whether the "
            "prompts are the same could not be told. Evaluate both by `lm_eval --output_path … --log_samples`, or both "
            "by `python -m forgetting evaluate`."
        )
    if of_harness:
        _refuse_options(names, choice, metrics, of_harness)
        notes = [note for output in of_harness for note in output.notes]
        return [(of_harness[0], of_harness[1])], list(dict.fromkeys(notes))
    if metrics:
        raise UserError("--metrics is for the output of `lm_eval`; of `evaluate`, a suite's column says its metric.")
    a, b = names
    suite = choice.suite or common_suite(a, b, choice)
    of_both = [evaluations_of(name, suite, choice, seeds) for name in names]
    pairs, notes = pairs_of(of_both[0], of_both[1], a, b)
    first = [note for evaluations in of_both for note in next(iter(evaluations.values())).notes]
    return pairs, list(dict.fromkeys([*first, *notes]))


def _refuse_options(
    names: tuple[str, str], choice: Choice, metrics: Mapping[str, str], outputs: list[HarnessOutput]
) -> None:
    if choice != Choice():
        raise UserError(
            f"{names[0]} and {names[1]} were evaluated by `lm_eval`, whose output has no suites and protocols: leave "
            "--suite, --protocol and --apply-chat-template out."
        )
    known = {task for output in outputs for task in output.content["tasks"]}
    if unknown := sorted(set(metrics) - known):
        raise UserError(f"--metrics names the task {unknown[0]}; there are {', '.join(sorted(known))}.")


def _differences(
    scores: Mapping[str, tuple[Scores, Scores]], columns: Mapping[str, list[str]], confidence: float, resamples: int,
    seed: int,
) -> tuple[list[Difference], list[Difference]]:  # fmt: skip
    """The differences of tasks; of the columns that have all theirs; of the average, if no column is missing."""
    generator = np.random.default_rng(seed)
    num_pairs = len(next(iter(scores.values()))[0])
    pair_weights = generator.multinomial(num_pairs, [1 / num_pairs] * num_pairs, size=resamples) / num_pairs
    means: dict[str, tuple[float, float, int]] = {}
    by_pair: dict[str, Float[np.ndarray, "pairs"]] = {}
    resampled: dict[str, Float[np.ndarray, "resamples"]] = {}
    for task, (scores_a, scores_b) in scores.items():
        differences = scores_a - scores_b
        means[task] = (100 * scores_a.mean(), 100 * scores_b.mean(), scores_a.shape[1])
        by_pair[task] = 100 * differences.mean(axis=1)
        draws = 100 * resampled_means(differences, is_binary(scores_a, scores_b), resamples, generator)
        resampled[task] = (draws * pair_weights).sum(axis=1)

    def combine(name: str, members: list[str]) -> Difference:
        parts = [means[member] for member in members]
        mean_a, mean_b = (math.fsum(part[side] for part in parts) / len(parts) for side in (0, 1))
        draws = np.mean([resampled[member] for member in members], axis=0)
        means[name], resampled[name] = (mean_a, mean_b, sum(part[2] for part in parts)), draws
        by_pair[name] = np.mean([by_pair[member] for member in members], axis=0)
        low, high = percentile_interval(draws, confidence)
        bootstrap, over_seeds = (float(low), float(high)), student_interval(by_pair[name], confidence)
        ends = [*bootstrap, *(over_seeds or ())]
        return Difference(name, mean_a, mean_b, mean_a - mean_b, min(ends), max(ends), means[name][2], num_pairs,
                          bootstrap, over_seeds)  # fmt: skip

    by_task = [combine(task, [task]) for task in scores]
    whole = {name: tasks for name, tasks in columns.items() if set(tasks) <= set(scores)}
    by_column = [combine(f"column {name}", members) for name, members in whole.items()]
    if columns and len(whole) == len(columns):
        by_column.append(combine("average", [column.name for column in by_column]))
    elif not columns and len(scores) > 1:
        by_column.append(combine("average", list(scores)))
    return by_task, by_column


def _test(metric: str, scores_a: Scores, scores_b: Scores) -> PairedTest:
    differences = scores_a - scores_b
    over_documents, over_pairs = 100 * differences.mean(axis=0), 100 * differences.mean(axis=1)
    detectable = [detectable_difference(over_documents), detectable_difference(over_pairs)]
    largest = max((value for value in detectable if value is not None), default=None)
    if len(over_pairs) == 1 and is_binary(scores_a, scores_b):
        only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
        p = mcnemar_p(only_a, only_b)
        return PairedTest(metric, only_a, only_b, p, p, largest)
    p = max([p for p in (student_p(over_documents), student_p(over_pairs)) if p is not None], default=1.0)
    return PairedTest(metric, None, None, p, p, largest)


def _refuse_numbers(confidence: float, resamples: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"The confidence is {confidence}; it must be between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise UserError(f"There are {resamples} resamples; at least 1 is needed, and some thousands are usual.")
    if seed < 0:
        raise UserError(f"The bootstrap's seed is {seed}; it must be at least 0.")


def _scores(pairs: list[tuple[Evaluation, Evaluation]], task: str) -> tuple[Scores, Scores]:
    """Scores of the same documents in all evaluations, by pair.

    Raises:
        UserError: Documents, prompts or metrics differ.
    """
    first = pairs[0][0]
    reference = first.scores(task)
    sides: tuple[list[list[float]], list[list[float]]] = ([], [])
    for pair in pairs:
        for side, evaluation in zip(sides, pair, strict=True):
            first.refuse_other_conditions(task, evaluation)
            scores = evaluation.scores(task)
            first.refuse_other_documents(task, evaluation, set(reference), set(scores))
            side.append([scores[document] for document in reference])
    return np.array(sides[0]), np.array(sides[1])
