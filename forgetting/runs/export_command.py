"""The command `export`: what a run learned or selected, for other programs."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from forgetting.arguments import parse
from forgetting.errors import UserError


def export_command(arguments: list[str]) -> None:
    """Write a run's model folder, or its selection as one weight per token."""
    options = parse(_parser(), arguments)
    _refuse_unclear(options)
    source = Path(options.run).expanduser()
    if options.token_weights:
        from forgetting.runs.token_weights import write_token_weights

        metadata = write_token_weights(source, Path(options.token_weights))
        order = metadata["order"]
        print(
            f"{order['num_examples']:,} examples, {order['total_steps']:,} steps of {order['batch_size']}: "
            f"{options.token_weights}"
        )


def _refuse_unclear(options: Namespace) -> None:
    if options.token_weights is None:
        raise UserError("Say what to export: a FOLDER for the model, or --token-weights FILE.parquet.")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, prog="python -m forgetting export",
        description="Write a run's selection as one weight per token.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "run", type=str, help="a run folder (runs/<experiment>/seed-<n>); for --token-weights also an experiment's YAML"
    )
    add("--token-weights", type=str | None, help="Parquet file with input_ids, labels and weights of each example")
    return parser
