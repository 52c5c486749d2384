"""The command `export`: what a run learned or selected, for other programs."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from forgetting.arguments import command_parser, parse
from forgetting.errors import UserError


def export_command(arguments: list[str]) -> None:
    """Write a run's model folder, or its selection as one weight per token."""
    options = parse(_parser(), arguments)
    _refuse_unclear(options)
    if options.token_weights is not None:
        _export_token_weights(Path(options.run).expanduser(), Path(options.token_weights).expanduser())
    else:
        _export_model(options.run, Path(options.folder).expanduser(), options)


def _export_token_weights(source: Path, file: Path) -> None:
    from forgetting.runs.token_weights import write_token_weights

    order = write_token_weights(source, file)["order"]
    print(f"{order['num_examples']:,} examples, {order['total_steps']:,} steps of {order['batch_size']}: {file}")


def _export_model(name: str, folder: Path, options: Namespace) -> None:
    from forgetting.runs.card import hub_base
    from forgetting.runs.hub_push import prepare_repository, push_folder
    from forgetting.runs.model_folder import refuse_existing, write_model_folder
    from forgetting.runs.trained import find_trained

    refuse_existing(folder)
    run = find_trained(name)
    if options.push and not options.merge and hub_base(run.facts) is None:
        raise UserError(
            f"The base model of {name} is the folder {run.base}, which nobody else has: its adapter alone would be of "
            "no use on the hub. Give --merge, or train on the base's id on the hub."
        )
    repository = prepare_repository(options.push, options.public) if options.push else None
    for left_out in write_model_folder(run, folder, options.merge):
        print(f"{left_out} is of another adapter, and is left out of the card: run `evaluate` again.")
    print(f"{'merged model' if options.merge else 'adapter'} in {folder}; fill in `license` in its README.md")
    if repository is not None:
        made = run.facts.provenance
        message = f"{made['id']}, seed {made['seed']}"
        print(f"pushed: {push_folder(folder, repository, message)}")


def _refuse_unclear(options: Namespace) -> None:
    if (options.folder is None) == (options.token_weights is None):
        raise UserError("Say what to export: either a FOLDER for the model, or --token-weights FILE.parquet.")
    if options.token_weights is not None and (options.merge or options.push):
        raise UserError("--merge and --push are for a model FOLDER, not for --token-weights.")
    if options.public and not options.push:
        raise UserError("--public says how to push: give --push ID with it.")


def _parser() -> ArgumentParser:
    parser = command_parser(
        "export",
        "Write a finished run's model as a folder, or its selection as one weight per token.",
        (
            "export runs/my/full/seed-0 model --merge",
            "export runs/my/full/seed-0 --token-weights w.parquet",
        ),
    )
    add = parser.add_argument
    add(
        "run", type=str, help="a run folder (runs/<experiment>/seed-<n>); for --token-weights also an experiment's YAML"
    )
    add("folder", type=str | None, nargs="?", help="new folder for the adapter, its tokenizer and its card")
    add("--merge", action="store_true", help="add the adapter into the base model's weights")
    add("--push", type=str | None, help="also upload the folder to this id on the hub (private)")
    add("--public", action="store_true", help="make the pushed repository public")
    add("--token-weights", type=str | None, help="Parquet file with input_ids, labels and weights of each example")
    return parser
