"""The command `probe`: noise of known kinds planted in any experiment's data, and which of it the scores find."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from forgetting.arguments import OwnOptions, config_files, config_options, option_strings, refuse_no_experiment
from forgetting.artifacts import write_json, write_text
from forgetting.errors import UserError

if TYPE_CHECKING:
    from forgetting.planting.probe import Probe
    from forgetting.studies.jobs import Job

EXAMPLES = """\
examples:
  python -m forgetting probe --config experiments/my/forgetting.yaml
  python -m forgetting probe --config experiments/my/forgetting.yaml \\
    --rates '{words: 0.2, contradiction: 0.1}' --train 500 --output my-probe

kinds of noise:
  answer         the response of another example, of about the same length
  entities       numbers and names swapped for others
  phrases        a stock phrase before the response and one after it
  words          three words of ten scrambled or in another order
  contradiction  another choice than the response makes, its explanation left"""
DEFAULT_RATE = 0.06
CLEAN = ("--data.corpus.reference.messages=clean", "--data.corpus.reference.noise=null")
"""Overrides that take the clean twins for D_ref."""
PROMPTLESS = "--data.promptless=true"
"""Override that stores what the score `PromptFit` reads; one of the two stores is enough, for it is the base's."""
IGNORED = ("--data.corpus.", "--data.corpus=", "--data.promptless=")
"""Overrides of what the probe itself decides: its own splits have taken the corpus's place."""


def probe_command(arguments: list[str]) -> None:
    """Plant noise in a sample of an experiment's data, train and score with two references, and report what is found.

    Raises:
        UserError: An option is wrong, the data cannot be read or are too few, or the folder holds another probe.
    """
    parser = own_options()
    own, rest = parser.parse_known_args(arguments)
    if own.help:
        print(parser.format_help())
        return
    refuse_no_experiment("probe", rest)
    rates = _rates(own.rates)
    if own.reference < 1:
        raise UserError(f"--reference is {own.reference}; a reference needs at least 1 example.")
    from forgetting.corpus.prepare import prepare_corpus
    from forgetting.method.health import POSITIVE_FRACTION
    from forgetting.model.backbone import load_tokenizer
    from forgetting.planting.probe import Planting, write_probe
    from forgetting.runs.parsed import ParsedExperiment

    parsed = ParsedExperiment(rest)
    settings = parsed.settings.data
    for split in ("train", "reference"):
        if settings.corpus[split] is not None:
            raise UserError(
                f"The experiment's examples are a published split (data.corpus.{split}), and the probe draws its "
                "sample from data.corpus.sources, which are others. Name that file as a source, and set "
                f"data.corpus.{split} to null."
            )
    for split, number in (("train", own.train), ("reference", own.reference), ("validation", own.held_out)):
        settings.corpus[f"num_{split}"] = number
        settings.corpus[split] = None
    _, data = parsed.instantiate()
    planting = Planting(rates, own.seed, data.template, data.max_length)
    tokenizer = load_tokenizer(data.backbone, data.revision)
    probe = write_probe(prepare_corpus(data.configuration, data.corpora), planting, tokenizer, own.output)
    print(f"{probe.folder}: {own.train:,} examples of D_train, {own.reference:,} of D_ref, {own.held_out:,} held out")
    if own.write_only:
        print(f"overlay {probe.overlay}\nsuite   {probe.suite if probe.suite.is_file() else 'none: no held-out pairs'}")
        return
    overrides = [option for option in option_strings(rest) if not option.startswith(IGNORED)]
    if settings.positive_fraction == "all" and not parsed.naming.is_reference:
        overrides = [option for option in overrides if not option.startswith("--data.positive_fraction=")]
        overrides.append(f"--data.positive_fraction={POSITIVE_FRACTION}")
    _report(probe, overrides, config_files(rest), parsed.root, own.seed)


def _report(probe: "Probe", overrides: list[str], experiment: list[Path], root: Path, seed: int) -> None:
    """Train and score with the noisy and with the clean reference, and print and write what is found."""
    from forgetting.inspection.probe_measures import measure_probe
    from forgetting.inspection.probe_report import probe_text
    from forgetting.method.health import POSITIVE_FRACTION
    from forgetting.method.scores import RECURRENCE
    from forgetting.method.selection import Selection
    from forgetting.runs.inspect import open_selection
    from forgetting.studies.running import run_jobs

    planted = (*config_options([*experiment, probe.overlay]), *overrides)
    options = {"noisy": (*planted, PROMPTLESS), "clean": (*planted, *CLEAN)}
    jobs = [job for part in options.values() for job in _jobs(part, root)]
    failures = run_jobs([job for job in jobs if not job.is_done()], root / "logs")
    if failures:
        raise UserError("\n".join(map(str, failures)))
    opened = {name: open_selection(list(part))[0] for name, part in options.items()}
    stores = {name: data.stored("train", also=[RECURRENCE]) for name, data in opened.items()}
    data = opened["noisy"]
    kinds = data.tokens.noise_kinds
    noisy_tokens = np.add.reduceat(
        np.append(stores["noisy"].column("noise") > 0, False), np.cumsum([0, *stores["noisy"].num_targets()[:-1]])
    )
    cut = sum(number for number, _ in probe.counts["train"].values()) - int(np.count_nonzero(noisy_tokens))
    by_fraction = isinstance(data.selection.positive_fraction, float)  # else by a threshold, which is of one score
    selection = data.selection if by_fraction else Selection(POSITIVE_FRACTION)
    report = measure_probe(stores, kinds, selection, probe.counts, cut, seed)
    text = probe_text(report)
    write_text(probe.folder / "report.md", text)
    write_json(probe.folder / "report.json", report.as_json())
    print(text)
    print(f"{probe.folder / 'report.md'}, {probe.folder / 'report.json'}")


def _jobs(options: tuple[str, ...], root: Path) -> "list[Job]":
    """Jobs that make the scores of an experiment's reference, each after what it needs."""
    from forgetting.runs.naming import Naming
    from forgetting.studies.job_builder import JobBuilder
    from forgetting.studies.results import RunFolders

    builder = JobBuilder(Path("probe"), Path(), RunFolders(root), (), ())
    builder.score(tuple(Naming(["fit", *options]).arguments_for_reference()))
    return list(builder.jobs.values())


def _rates(given: str | None) -> dict[str, float]:
    from forgetting.planting.kinds import KINDS

    if given is None:
        return dict.fromkeys(KINDS, DEFAULT_RATE)
    try:
        rates = yaml.safe_load(given)
    except yaml.YAMLError:
        rates = None
    if not isinstance(rates, dict) or not all(type(rate) in (int, float) for rate in rates.values()):
        raise UserError(f"--rates is {given!r}; a mapping of kinds to shares was expected, such as '{{words: 0.1}}'.")
    return {str(kind): float(rate) for kind, rate in rates.items()}


def own_options() -> OwnOptions:
    """The options that are not keys of an experiment."""
    parser = OwnOptions(
        "probe",
        "Plants noise of known kinds in a sample of an experiment's data, trains one\n"
        "reference on equally noisy examples and one on their clean twins, scores, and\n"
        "says which noise is found. Every key of the experiment can be overridden:\n"
        "python -m forgetting fit --help.",
        EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--rates",
        metavar="MAPPING",
        help=f"Share of the examples with each kind of noise. Default: {DEFAULT_RATE} each.",
    )
    add("--train", type=int, default=1000, metavar="N", help="Examples of D_train. Default: 1000.")
    add("--reference", type=int, default=300, metavar="N", help="Examples of D_ref. Default: 300.")
    add("--held-out", type=int, default=200, metavar="N", help="Held-out examples, for the suite. Default: 200.")
    add("--seed", type=int, default=0, help="Of the planted noise and of the intervals. Default: 0.")
    add("--output", type=Path, default=Path("probe"), metavar="FOLDER", help="Data and report. Default: probe.")
    add("--write-only", action="store_true", help="Plant, and train nothing: for a study of your own over the files.")
    return parser
