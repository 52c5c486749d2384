"""The configuration files that a command line names, and the bases under them, found before heavy imports."""

from collections.abc import Sequence
from pathlib import Path

from forgetting.errors import UserError
from forgetting.paths import CONFIGS
from forgetting.run import read_yaml


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files given with `--config`, in order.

    Raises:
        UserError: One comes after an override, which it would override in turn; or the option is abbreviated, which
            argparse would take and its file's base would be missed.
    """
    files, overridden = [], False
    for place, argument in enumerate(arguments):
        name = argument.split("=", 1)[0]
        if name != "--config" and len(name) > 2 and "--config".startswith(name):
            raise UserError(f"{name} is not an option: write --config in full.")
        if argument in ("--config", "-c") and place + 1 < len(arguments):
            files.append(Path(arguments[place + 1]))
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
        elif argument.startswith("-c") and not argument.startswith("--"):
            files.append(Path(argument[2:].removeprefix("=")))
        if files and overridden and name in ("--config", "-c"):
            raise UserError(f"{files[-1]} comes after an override: give every --config before the overrides.")
        overridden = overridden or (argument.startswith("--") and name != "--config")
    return files


def base_files(arguments: Sequence[str]) -> list[Path]:
    """The base configurations: `configs/paper.yaml`, then the one that an experiment names as its `base`.

    Raises:
        UserError: A file is missing or not YAML, or there is no such base.
    """
    files = [CONFIGS / "paper.yaml"]
    if any(argument.split("=", 1)[0] == "--base" for argument in arguments):
        raise UserError("A base is named by the experiment: write `base: lab` at the top of its file.")
    names = [content["base"] for content in map(read_yaml, config_files(arguments)) if content.get("base")]
    if names and names[-1] != "paper":
        file = CONFIGS / f"{names[-1]}.yaml"
        if not file.is_file():
            there = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
            raise UserError(f"There is no base configuration {names[-1]!r} in {CONFIGS}; there are: {there}.")
        files.append(file)
    for file in files:
        if not file.is_file():  # jsonargparse would go on without it
            raise UserError(f"The base configuration {file} is missing. Install the package again.")
    return files
