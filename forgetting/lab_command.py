"""The command `lab`: generated data whose noise is known, and the study of the paper's comparison on it."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from forgetting.arguments import command_parser, parse, read_yaml
from forgetting.artifacts import write_yaml
from forgetting.errors import UserError
from forgetting.lab.texts import MIXED, NOISE, suffix
from forgetting.paths import CONFIGS, EXPERIMENTS


def lab_command(arguments: list[str]) -> None:
    """Write worlds, run the study over them, and print its table: Algorithm 1 from nothing, in minutes."""
    options = parse(_parser(), arguments)
    if options.seeds < 1 or options.first_seed < 0:
        raise UserError(
            f"--seeds is {options.seeds} and --first-seed {options.first_seed}; expected at least 1 and at least 0."
        )
    experiments = experiments_folder()
    source = experiments / "tables" / "lab.yaml" if options.study is None else Path(options.study)
    runs = Path(options.runs)
    from forgetting.lab.pretraining import one_thread
    from forgetting.studies.command import table_command

    folders = [
        Path(options.worlds) / str(seed) for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]
    _write_worlds(folders, runs / "logs")
    file = runs / f"{source.stem}{suffix(options.noise)}{source.suffix}"
    study = write_study(source, experiments, folders, file, options.noise)
    places = ["--runs", str(runs), *(["--corpora", options.corpora] if options.corpora else [])]
    outputs = ["--output", *options.output] if options.output else []
    with one_thread():  # the same bytes whatever the number of cores, and no slower at this size
        table_command([str(study), "--run", *places, *outputs])


def _write_worlds(folders: list[Path], logs: Path) -> None:
    from rich.console import Console

    from forgetting.lab.world import World, write_world
    from forgetting.studies.progress import Progress, output_in_file

    progress = Progress(len(folders), Console(stderr=True))
    with progress:
        for folder in folders:
            with progress.job(f"world {folder.name}"), output_in_file(logs / "world" / f"{folder.name}.log"):
                write_world(World(int(folder.name)), folder, progress.step)


def write_study(source: Path, experiments: Path, worlds: list[Path], file: Path, noise: str = MIXED) -> Path:
    """Write a study of the lab with worlds as its repetitions, so that `table` can print and run it too."""
    from forgetting.lab.world import overlay_file

    study = read_yaml(source)
    study["experiments"] = str(experiments)
    study["repeats"] = [
        {"overlay": str(overlay_file(world, int(world.name), noise)), "suite": str(world / "suite.yaml")}
        for world in worlds
    ]
    write_yaml(file, study)
    return file


def experiments_folder() -> Path:
    """The folder of the lab's experiments: here, or where the package's configurations are.

    Raises:
        UserError: It is in neither place.
    """
    places = [Path(EXPERIMENTS), CONFIGS.parent / EXPERIMENTS]
    for place in places:
        if (place / "lab" / "reference.yaml").is_file() and (place / "tables" / "lab.yaml").is_file():
            return place
    raise UserError(
        f"The lab's experiments are neither in {places[0]} (from {Path.cwd()}) nor in {places[1]}. "
        "Run the command in a copy of the repository."
    )


def _parser() -> ArgumentParser:
    parser = command_parser(
        "lab",
        "Generate data whose noise is known, run the paper's comparison on it, and print the table.",
        ("lab", "lab --seeds 5 --output lab.md lab.csv", "lab --study experiments/tables/lab_beyond.yaml --seeds 10"),
    )
    add = parser.add_argument_group("worlds").add_argument
    add("--seeds", type=int, default=1, help="number of worlds; several give mean ± sd and intervals")
    add("--first-seed", type=int, default=100, help="number of the first world")
    add("--noise", type=Literal[tuple(NOISE)], default=MIXED, help="noise of the fine-tuning data")
    add("--study", type=str | None, default=None, help="another study of the worlds than experiments/tables/lab.yaml")
    add = parser.add_argument_group("where").add_argument
    add("--worlds", type=str, default="worlds", help="folder of the worlds")
    add("--runs", type=str, default="runs", help="folder of the runs")
    add("--corpora", type=str | None, default=None, help="folder of the prepared corpora")
    add = parser.add_argument_group("what is written").add_argument
    add("--output", type=str, nargs="+", help="files to write, the suffix giving the format (default: print)")
    return parser
