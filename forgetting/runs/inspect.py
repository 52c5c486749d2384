"""`inspect`: the scores and the selection of an experiment as one page."""

import argparse
from pathlib import Path

from forgetting.arguments import base_files, parse, refuse_no_experiment
from forgetting.artifacts import write_text
from forgetting.errors import UserError


def inspect_command(arguments: list[str]) -> None:
    """Write the page of an experiment's scores.

    Raises:
        UserError: An option is wrong, or there is no complete score store.
    """
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    options.add_argument("--output", type=Path, default=Path("page.html"))
    options.add_argument("--examples", type=int, default=200)
    try:
        own, rest = options.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}. Give --output a file and --examples a whole number.") from None
    if own.examples < 1:
        raise UserError(f"--examples is {own.examples}; it must be at least 1.")
    if own.output.is_dir():
        raise UserError(f"--output {own.output} is a folder; give a file.")
    from jsonargparse import capture_parser

    from forgetting.inspection.page import build_page
    from forgetting.method.data import ForgettingData
    from forgetting.model.backbone import load_tokenizer
    from forgetting.runs.naming import Naming
    from forgetting.runs.run import Run
    from forgetting.runs.trainer_cli import TrainerCLI

    command = ["fit", *rest]
    parser = capture_parser(lambda: TrainerCLI(command, base_files(rest)))
    config = parse(parser, command)
    refuse_no_experiment("inspect", rest)
    naming, settings = Naming(command), config["fit"]
    if naming.is_reference:  # it has no selection of its own: it is shown as a method would select
        settings.data.split = "train"
        if settings.data.positive_fraction == "all":
            settings.data.positive_fraction = 0.7
    reference = Run(naming.reference_id, settings.data.reference_seed, {}, Path(settings.run.root))
    settings.data.store = settings.data.store or reference.scores
    data = parser.instantiate_classes(config)["fit"]["data"]
    assert isinstance(data, ForgettingData)
    if not data.selects:
        raise UserError('data.positive_fraction is "all", so nothing is selected; give ρ, such as 0.7.')
    data.score_command = naming.command_for_reference("score")
    data.setup("validate")
    page = build_page(data, load_tokenizer(data.backbone, data.revision), naming.run_id, own.examples)
    write_text(own.output, page)
    print(f"{own.output}: {len(page.encode()):,} bytes")
