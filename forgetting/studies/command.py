"""The command `table`."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from forgetting.arguments import command_parser, parse
from forgetting.errors import UserError

if TYPE_CHECKING:
    from forgetting.studies.plan import Plan
    from forgetting.studies.running import Failure

DRAWN = ("svg", "png")


def table_command(arguments: list[str]) -> None:
    """Print a study's table from the runs that are there; `--run` runs what is missing first."""
    options = parse(_parser(), arguments)
    forms = _forms(options)
    from forgetting.evaluation.suite import PROTOCOLS
    from forgetting.studies import collect  # noqa: F401 - now, since the code may be updated while jobs run for hours
    from forgetting.studies.plan import Plan
    from forgetting.studies.results import RunFolders
    from forgetting.studies.spec_file import load_study
    from forgetting.studies.spec_values import seeds

    if options.protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol {options.protocol}. Known: {', '.join(PROTOCOLS)}.")
    study = load_study(Path(options.study))
    corpora = Path(options.corpora) if options.corpora else None
    corpus = Path(options.corpus) if options.corpus else None
    runs = RunFolders(Path(options.runs), options.protocol, corpora, corpus)
    overlays = [Path(file) for file in options.config or []]
    plan = Plan(study, runs, overlays, seeds(options.seeds, "--seeds") if options.seeds else None)
    failures = _run_missing(plan) if options.run else []
    everything = shlex.join(["python", "-m", "forgetting", "table", *arguments, *([] if options.run else ["--run"])])
    _write(plan, forms, [Path(output) for output in options.output or []], everything)
    if failures:
        failed = sum(failure.log is not None for failure in failures)
        lines = "\n  ".join(map(str, failures))
        raise UserError(f"{failed} jobs failed and {len(failures) - failed} were skipped; the same command tries them "
                        f"again.\n  {lines}")  # fmt: skip


def _run_missing(plan: "Plan") -> "list[Failure]":
    """Run the jobs of a plan that are not done."""
    plan.refuse_missing_suites()
    jobs = plan.pending()
    if not jobs:
        print("nothing is missing", file=sys.stderr)
        return []
    from forgetting.studies.running import log_of, run_jobs

    logs = plan.runs.root / "logs"
    failures = run_jobs(jobs, logs)
    prepared = [job for job in jobs if job.key == plan.corpus]
    if prepared and plan.runs.corpus is None:
        printed = log_of(prepared[0], logs).read_text(encoding="utf-8")
        folders = re.findall(r"^corpus (.*) \([0-9a-f]+\)$", printed, re.MULTILINE)
        plan.runs = replace(plan.runs, corpus=Path(folders[-1])) if folders else plan.runs
    return failures


def _write(plan: "Plan", forms: list[str], outputs: list[Path], everything: str) -> None:
    """Write the table of a plan to files, each in its format, or print it where there are none."""
    from forgetting.artifacts import write_text
    from forgetting.studies.collect import collect
    from forgetting.studies.render import render

    draws_differences = plan.study.figure is not None and plan.study.figure.kind == "differences"
    table = collect(plan, everything, intervals=draws_differences or any(form not in DRAWN for form in forms))
    if not outputs:
        print(render(table, forms[0]), end="")
    for output, form in zip(outputs, forms, strict=False):
        if form in DRAWN:
            from forgetting.studies.figures import draw

            draw(table, output, form)
        else:
            write_text(output, render(table, form))
        print(output)


def _forms(options: Namespace) -> list[str]:
    """The format of each output; of what is printed where there is none.

    Raises:
        UserError: There is no such format, or a picture would be printed.
    """
    from forgetting.studies.render import FORMATS, SUFFIXES

    outputs = [Path(output) for output in options.output or []]
    if options.format and len(outputs) > 1:
        raise UserError("Give --format with one --output; several are told apart by their suffixes.")
    forms = [options.format or SUFFIXES.get(output.suffix, output.suffix) for output in outputs]
    forms = forms or [options.format or "markdown"]
    for form in forms:
        if form not in (*FORMATS, *DRAWN):
            raise UserError(
                f"The format {form!r} is unknown; use --format {', '.join([*FORMATS, *DRAWN])}, "
                f"or an --output that ends in {', '.join(SUFFIXES)}."
            )
        if form in DRAWN and not outputs:
            raise UserError(f"--format {form} needs --output FILE.")
    return forms


def _parser() -> ArgumentParser:
    parser = command_parser(
        "table",
        "The table of a study, from the runs that are there; --run runs what is missing first.",
        (
            "table experiments/tables/table3.yaml",
            "table mine.yaml --run --seeds 3 --output mine.md mine.tex",
            "table experiments/tables/figure1a.yaml --output fig.svg",
        ),
    )
    parser.add_argument("study", type=str, help="its YAML file, such as experiments/tables/table3.yaml")
    add = parser.add_argument_group("what is run").add_argument
    add("--run", action="store_true", help="run what is missing, one job after the other, in this process")
    add("--seeds", type=str | None, help="of the runs: a number, or a list such as 0,5,7 (default: its own)")
    add("--config", type=str, action="append", help="a file laid over every run, such as configs/published.yaml")
    add("--protocol", type=str, default="corrected", help="of the evaluation: corrected, published or token_stop")
    add = parser.add_argument_group("where").add_argument
    add("--runs", type=str, default="runs", help="folder of the runs")
    add("--corpora", type=str | None, help="folder of prepared corpora (default: the configuration's)")
    add("--corpus", type=str | None, help="folder of a prepared corpus (Table 1), as prepare prints it")
    add = parser.add_argument_group("what is written").add_argument
    add("--format", type=str | None, help="markdown, latex, csv or html; figures: svg or png too")
    add("--output", type=str, nargs="+", help="files to write, the suffix giving the format (default: print)")
    return parser
