"""The commands `evaluate` and `compare`."""

import gc
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from forgetting.arguments import command_parser, parse
from forgetting.errors import UserError
from forgetting.evaluation.suite import PROTOCOLS, Suite, WeightDType

if TYPE_CHECKING:
    from rich.table import Table

    from forgetting.evaluation.compare import Comparison


def evaluate_command(arguments: list[str]) -> None:
    """Evaluate a run, an experiment's runs, a model folder or a hub model → `results.<suite>.json`."""
    options = parse(_evaluate_parser(), arguments)
    from forgetting.evaluation.target import target_names

    names = target_names(options.target)
    if len(names) > 1 and options.output:
        raise UserError(f"{options.target} holds {len(names)} runs, whose results --output would mix: leave it out.")
    suite = _suite(options)
    from forgetting.evaluation.evaluate import evaluate

    failed: dict[str, str] = {}
    for name in names:
        if len(names) > 1:
            print(f"{name}:", flush=True)
        try:
            evaluate(
                name, suite, Path(options.output) if options.output else None, options.revision, options.device,
                merge=options.merge, whole_samples=options.samples, fresh=options.fresh, quiet=options.quiet,
                wandb={"project": options.wandb} if options.wandb else None, chat=options.apply_chat_template,
            )  # fmt: skip
        except UserError as error:
            if len(names) == 1:
                raise
            failed[name] = str(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
        gc.collect()  # the harness's model holds itself; the next one needs its memory
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(f"{len(failed)} of {len(names)} runs were not evaluated: {', '.join(failed)} ({name}: {error})")


def compare_command(arguments: list[str]) -> None:
    """Compare two evaluations: differences with intervals over documents and seeds."""
    options = parse(_compare_parser(), arguments)
    from dataclasses import asdict

    from rich.console import Console

    from forgetting.artifacts import write_json
    from forgetting.evaluation.compare import compare

    comparison = compare(
        options.run_a, options.run_b, options.protocol, options.confidence, options.resamples, options.seed,
        options.suite, chat=options.apply_chat_template, metrics=_metrics(options.metrics or []), tasks=options.tasks,
    )  # fmt: skip
    tasks, columns, notes = comparison
    Console().print(
        f"A: {options.run_a}\nB: {options.run_b}\n{tasks[0].seeds} pair(s) of runs. The interval spans that of a "
        f"bootstrap over documents and pairs ({options.resamples} resamples) and, from two pairs on, Student's t on "
        "the pairs' differences.",
        markup=False,
    )
    for note in notes:
        Console().print(f"note: {note}", markup=False)
    Console().print(
        *_tables(comparison, options.confidence),
        "p: McNemar's exact test where documents are right or wrong, else Student's paired t test. Holm: adjusted for "
        f"{len(tasks)} task(s). Detectable: the smallest true difference found with 80% power at the 5% level.",
    )
    if options.output:
        content = {"a": options.run_a, "b": options.run_b, "suite": options.suite, "protocol": options.protocol}
        content |= {"apply_chat_template": options.apply_chat_template, "confidence": options.confidence}
        content |= {"pairs": tasks[0].seeds, "notes": notes}
        content |= {"tasks": [asdict(row) for row in tasks], "columns": [asdict(row) for row in columns]}
        write_json(Path(options.output), content)


def _metrics(given: list[str]) -> dict[str, str]:
    """`task=metric` or `task=metric,filter` by task."""
    if wrong := [text for text in given if not re.fullmatch(r"[^=]+=[^=]+", text)]:
        raise UserError(f"--metrics {wrong[0]}: TASK=METRIC or TASK=METRIC,FILTER was expected.")
    return dict(text.split("=") for text in given)


def _tables(comparison: "Comparison", confidence: float) -> "list[Table]":
    """Tables of the differences, of the two parts of each interval where there are several pairs, and of the tests.

    Each fits a terminal of 80 columns: a number that is cut off there looks like another one.
    """
    from rich.table import Table

    differences, parts, tests = Table(), Table(), Table()
    for table, headers in ((differences, ("",)), (parts, ("",)), (tests, ("", "metric"))):
        for header in headers:
            table.add_column(header, overflow="fold")
    for header in ("A", "B", "A − B", f"{100 * confidence:g}% interval", "documents"):
        differences.add_column(header, no_wrap=True)
    for header in ("of it: bootstrap", "of it: Student's t on the pairs"):
        parts.add_column(header, no_wrap=True)
    for header in ("only A, B", "p", "p (Holm)", "detectable"):
        tests.add_column(header, no_wrap=True)
    for section in comparison[:2]:
        for row in section:
            ends = ((row.low, row.high), row.bootstrap, row.over_seeds)
            interval, *others = ("—" if pair is None else f"{pair[0]:+.2f} … {pair[1]:+.2f}" for pair in ends)
            numbers = [f"{row.a:.2f}", f"{row.b:.2f}", f"{row.difference:+.2f}", interval, str(row.documents)]
            differences.add_row(row.name, *numbers)
            parts.add_row(row.name, *others)
        differences.add_section()
        parts.add_section()
    for row in comparison.tasks:
        if test := row.test:
            only = "—" if test.only_a is None else f"{test.only_a}, {test.only_b}"
            detectable = "—" if test.detectable is None else f"{test.detectable:.2f}"
            tests.add_row(row.name, test.metric, only, f"{test.p:.3g}", f"{test.adjusted_p:.3g}", detectable)
    return [differences, parts, tests] if comparison.tasks[0].seeds > 1 else [differences, tests]


def _compare_parser() -> ArgumentParser:
    parser = command_parser(
        "compare",
        "Compare two evaluations: differences with intervals over documents and seeds.",
        (
            "compare runs/mine/run/seed-0 runs/mine/run@rank=8/seed-0",
            "compare runs/lab/forgetting-token runs/lab/full --seed 1",
        ),
    )
    help_of_a = "what evaluate takes, a folder with its results, or output of lm_eval"
    parser.add_argument("run_a", type=str, help=help_of_a)
    parser.add_argument("run_b", type=str, help="the same")
    add = parser.add_argument_group("which results").add_argument
    add("--suite", type=str | None, help="whose results (default: the only one that both have)")
    add("--protocol", type=str, default="corrected", help="corrected, published or token_stop")
    add("--apply-chat-template", "--apply_chat_template", action="store_true", help="results of such prompts")
    add("--tasks", type=str, nargs="+", help="only these (default: all, which both must have)")
    add("--metrics", type=str, nargs="+", help="of lm_eval's output: TASK=METRIC or TASK=METRIC,FILTER")
    add = parser.add_argument_group("interval").add_argument
    add("--confidence", type=float, default=0.95, help="of the interval")
    add("--resamples", type=int, default=10_000, help="of the bootstrap")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add = parser.add_argument_group("what is written").add_argument
    add("--output", type=str | None, help="also write the table as JSON")
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = command_parser(
        "evaluate",
        "Evaluate a run, an experiment's runs, a model folder or a hub model with lm-evaluation-harness.",
        (
            "evaluate runs/table3/llama-3.2-1b/forgetting-token",
            "evaluate runs/lab/full --suite worlds/100/suite.yaml",
            "evaluate gpt2 --tasks arc_challenge boolq --documents 20",
        ),
    )
    target = "a run folder, an experiment's folder (each seed in it), a model folder, or a hub id"
    parser.add_argument("target", type=str, help=target)
    add = parser.add_argument_group("benchmarks").add_argument
    add("--suite", type=str | None, help="name in configs/evaluation/ or a YAML file (default: main)")
    add("--protocol", type=str, default="corrected", help="corrected, published or token_stop")
    add("--tasks", type=str, nargs="+", help="tasks of the harness; with --suite: only these of it (a trial)")
    add("--include-path", type=str, nargs="+", help="folders with further task files")
    add("--data-files", type=str | None, help="YAML file: task → split → local file(s)")
    add("--shots", type=int | None, help="few-shot examples (only without a suite)")
    add("--documents", type=int | None, help="only the first of each: a trial, kept in results.<suite>.trial.json")
    add("--seed", type=int | None, help="of sampling and of the choice of few-shot examples")
    add = parser.add_argument_group("model").add_argument
    add("--batch-size", type=str | None, help="a number, auto, or auto:N")
    add("--device", type=str | None, help="such as cuda:1 or cpu")
    add("--dtype", type=WeightDType | None, help="of the weights (default: suite's, run's, model's)")
    add("--revision", type=str | None, help="of a hub model")
    add("--merge", action="store_true", help="add the adapter into the weights first")
    add("--apply-chat-template", "--apply_chat_template", action="store_true",
        help="prompts in the tokenizer's chat template, few-shot examples as turns")  # fmt: skip
    add = parser.add_argument_group("what is written").add_argument
    add("--output", type=str | None, help="folder, or .json file (default: the run's folder or runs/base/)")
    add("--samples", action="store_true", help="keep documents and prompts next to scores and answers")
    add("--fresh", action="store_true", help="run tasks again that are finished")
    add("--quiet", action="store_true", help="no progress bars and no warnings of libraries")
    add("--wandb", type=str | None, help="project in Weights & Biases (default: the run's, in its own run)")
    return parser


def _suite(options: Namespace) -> Suite:
    from forgetting.evaluation.naming import name_of_tasks
    from forgetting.evaluation.suite import Column, absolute_files, check_suite, load_suite, read_mapping

    names = list(dict.fromkeys(name for given in options.tasks or [] for name in given.split(",") if name))
    if options.tasks is not None and not names:
        raise UserError("--tasks names no task. Name one, or leave --tasks out to run the whole suite.")
    if options.protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol {options.protocol}. Known: {', '.join(PROTOCOLS)}.")
    if options.suite or not names:
        suite = load_suite(options.suite or "main", options.protocol)
        if options.shots is not None:
            raise UserError(
                "--shots is only for --tasks without --suite; a suite says itself how many few-shot examples."
            )
        if names:
            suite.only(names)
    else:
        columns = {name: Column([name], shots=options.shots) for name in names}
        suite = Suite(name_of_tasks(names, options.shots), columns, options.protocol)
    suite.include_path += options.include_path or []
    if options.data_files:
        origin = Path(options.data_files)
        suite.data_files = {**suite.data_files, **absolute_files(read_mapping(origin), origin)}
    if options.documents is not None:
        suite.trial = True
        for column in suite.columns.values():
            column.documents = options.documents
    suite.batch_size = suite.batch_size if options.batch_size is None else options.batch_size
    suite.dtype = options.dtype or suite.dtype
    suite.seed = suite.seed if options.seed is None else options.seed
    check_suite(suite, "the command line")
    return suite
