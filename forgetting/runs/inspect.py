"""`inspect`: the scores and the selection of an experiment as a page, as rows of JSON, or in the terminal."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting.arguments import OwnOptions, refuse_no_experiment
from forgetting.artifacts import write_text
from forgetting.errors import UserError
from forgetting.method.store import ScoreStore

if TYPE_CHECKING:
    from forgetting.method.data import ForgettingData

EXAMPLES = """\
examples:
  python -m forgetting inspect --config experiments/lab/forgetting-token.yaml
  python -m forgetting inspect --config experiments/lab/ignoring-token.yaml \\
    --data.positive_fraction 0.5 --terminal
"""
PAGE = Path("inspect.html")


def inspect_command(arguments: list[str]) -> None:
    """Show the scores of D_train and what the experiment selects by them.

    Raises:
        UserError: An option is wrong, nothing is selected, or the score store is missing or another experiment's.
    """
    parser = own_options()
    own, rest = parser.parse_known_args(arguments)
    if own.help:
        print(parser.format_help())
        return
    _refuse_options(own)
    refuse_no_experiment("inspect", rest)
    from forgetting.inspection.examples import Examples
    from forgetting.inspection.page import build_page
    from forgetting.inspection.rows import print_examples, write_rows
    from forgetting.model.backbone import load_tokenizer
    from forgetting.runs.selection_health import other_stores, stored_health

    data, name = open_selection(rest)
    examples = Examples(data, load_tokenizer(data.backbone, data.revision))
    if own.terminal:
        print_examples(examples, own.examples or 5)
    if own.jsonl:
        write_rows(examples, own.jsonl, own.examples or len(examples))
        print(f"{own.jsonl}: {min(own.examples or len(examples), len(examples)):,} rows")
    output = own.output or (None if own.terminal or own.jsonl else PAGE)
    if output:
        assert data.store_folder is not None, "it was opened"
        store = Path(data.store_folder)
        health = stored_health(data, data.selection.positive_fraction, other_stores(store))
        page = build_page(examples, name, own.examples or 2000, "\n".join(health.lines()))
        write_text(output, page)
        print(f"{output}: {len(page.encode()):,} bytes")


def open_selection(arguments: list[str]) -> tuple["ForgettingData", str]:
    """The data of an experiment with its scores and its selection, and the run's name.

    Raises:
        UserError: A key is wrong, nothing is selected, or the score store is missing or another experiment's.
    """
    from forgetting.method.health import POSITIVE_FRACTION
    from forgetting.runs.parsed import ParsedExperiment

    parsed = ParsedExperiment(arguments)
    settings = parsed.settings.data
    if parsed.naming.is_reference:  # it has no selection of its own: it is shown as a method would select
        settings.split = "train"
        if settings.positive_fraction == "all":
            settings.positive_fraction = POSITIVE_FRACTION
    _, data = parsed.instantiate_with_store()
    if not data.selects:
        raise UserError('data.positive_fraction is "all", so nothing is selected; give ρ, such as 0.7.')
    try:
        ScoreStore.open(Path(settings.store))  # before a corpus is made, which may take long
    except UserError as error:
        raise UserError(f"{error} Make it with\n  {data.score_command}") from None
    data.setup("validate")
    return data, parsed.naming.run_id


def own_options() -> OwnOptions:
    """The options that are not keys of an experiment."""
    parser = OwnOptions(
        "inspect",
        "Scores of the tokens of D_train, and which the experiment makes positive or\n"
        "negative. Every key of the experiment can be overridden:\npython -m forgetting fit --help.",
        EXAMPLES,
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"The page. Default: {PAGE}.")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="Write rows of tokens, metrics and annotations.")
    parser.add_argument("--terminal", action="store_true", help="Print examples in color.")
    parser.add_argument(
        "--examples", type=int, metavar="N",
        help="Examples, drawn evenly over sources and mean scores. Default: 2000 for a page (fewer where they exceed "
        "4.5 MB), 5 for the terminal, all for rows.",
    )  # fmt: skip
    return parser


def _refuse_options(own: argparse.Namespace) -> None:
    if own.examples is not None and own.examples < 1:
        raise UserError(f"--examples is {own.examples}; it must be at least 1.")
    for name in ("output", "jsonl"):
        path = getattr(own, name)
        if path is not None and path.is_dir():
            raise UserError(f"--{name} {path} is a folder; give a file.")
    if own.output is not None and own.output == own.jsonl:
        raise UserError(f"--output and --jsonl are both {own.output}; give two files.")
