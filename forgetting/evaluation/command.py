"""The commands `evaluate` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from forgetting.errors import UserError

if TYPE_CHECKING:
    from forgetting.evaluation.suite import Suite


def evaluate_command(arguments: list[str]) -> None:
    """Evaluate a run, a model folder or a hub model with lm-evaluation-harness → `results.json`."""
    options = _evaluate_parser().parse_args(arguments)
    from forgetting.evaluation.evaluate import evaluate

    evaluate(
        options.target,
        _suite(options),
        output=Path(options.output) if options.output else None,
        revision=options.revision,
        device=options.device,
        merge=options.merge,
        whole_samples=options.samples,
        fresh=options.fresh,
        quiet=options.quiet,
    )


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m forgetting evaluate",
        description="Evaluate a run, a model folder or a hub model with lm-evaluation-harness.",
    )
    add = parser.add_argument
    add("target", type=str, help="a run folder, a model folder, or a hub id")
    add("--suite", type=str | None, default=None, help="name in configs/evaluation/ or a YAML file (default: main)")
    add("--protocol", type=str, default="corrected", help="corrected, published or token_stop")
    add(
        "--tasks", type=str, nargs="+", default=None, help="tasks of the harness; with --suite: only these of its tasks"
    )
    add("--include-path", type=str, nargs="+", default=None, help="folders with further task files")
    add("--data-files", type=str | None, default=None, help="YAML file: task → split → local file(s)")
    add("--shots", type=int | None, default=None, help="demonstrations (only without a suite)")
    add("--documents", type=int | None, default=None, help="only the first so many documents of each task (a trial)")
    add(
        "--output",
        type=str | None,
        default=None,
        help="folder, or .json file (default: the run's folder or runs/base/)",
    )
    add("--batch-size", type=str | None, default=None, help="a number, auto, or auto:N")
    add("--device", type=str | None, default=None, help="such as cuda:1 or cpu")
    add("--dtype", type=str | None, default=None, help="of the weights (default: the suite's, the run's, the model's)")
    add("--revision", type=str | None, default=None, help="of a hub model")
    add("--seed", type=int | None, default=None, help="of sampling and of the choice of demonstrations")
    add("--merge", action="store_true", help="add the adapter into the weights first")
    add("--samples", action="store_true", help="keep documents and prompts beside scores and answers")
    add("--fresh", action="store_true", help="run tasks again that are finished")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


def _suite(options: Namespace) -> Suite:
    from forgetting.evaluation.suite import Column, Suite, absolute_files, check_suite, load_suite, read_mapping

    names = [name for given in options.tasks or [] for name in given.split(",") if name]
    if options.suite or not names:
        suite = load_suite(options.suite or "main", options.protocol)
        if options.shots is not None:
            raise UserError("--shots is only for --tasks without --suite; a suite says itself how many demonstrations.")
        if names:
            suite.only(names)
    else:
        suite = Suite("tasks", {name: Column([name], shots=options.shots) for name in names}, options.protocol)
        check_suite(suite, "--tasks")
    for folder in options.include_path or []:
        suite.include_path.append(folder)
    if options.data_files:
        origin = Path(options.data_files)
        suite.data_files = {**suite.data_files, **absolute_files(read_mapping(origin), origin)}
    if options.documents is not None:
        for column in suite.columns.values():
            column.documents = options.documents
        check_suite(suite, "--documents")
    suite.batch_size = options.batch_size or suite.batch_size
    suite.dtype = options.dtype or suite.dtype
    suite.seed = suite.seed if options.seed is None else options.seed
    return suite
