"""The command `lab`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from forgetting.errors import UserError


def lab_command(arguments: list[str]) -> None:
    """Generate worlds, run the paper's comparison in each, and print the table and how well Q found the noise."""
    options = _parser().parse_args(arguments)
    if options.seeds < 1 or options.first_seed < 0:
        raise UserError(
            f"--seeds is {options.seeds} and --first-seed {options.first_seed}; expected at least 1 and at least 0."
        )
    from rich.console import Console

    from forgetting.artifacts import complete_or_absent, write_json
    from forgetting.lab.comparison import Comparison
    from forgetting.lab.laboratory import STAGES_PER_WORLD, Laboratory
    from forgetting.lab.stages import Stages, output_in_file
    from forgetting.lab.world import World

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    output = Path(options.output) if options.output else Path(options.runs) / "lab"
    laboratory = Laboratory(Path(options.worlds), Path(options.runs), Path(options.corpora))
    stages = Stages(STAGES_PER_WORLD * len(seeds), Console(stderr=True))
    log = output / "lab.log"
    stages.console.print(f"what the stages print goes to {log}", markup=False, highlight=False)
    with stages.shown(), output_in_file(log):
        comparison = Comparison([laboratory.run(World(seed), stages) for seed in seeds])
    write_json(output / "table.json", comparison.record())
    with complete_or_absent(output / "table.md") as temporary:
        temporary.write_text(comparison.markdown(), encoding="utf-8")
    _show(comparison.tables())
    print(f"{output / 'table.md'}, {output / 'table.json'}")


def _show(tables: list[tuple[str, list[str], list[list[str]]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m forgetting lab",
        description="Generate worlds, run the paper's comparison in each, show the table and how Q found the noise.",
    )
    add = parser.add_argument
    add("--seeds", type=int, default=1, help="how many worlds; more give mean ± sd and paired differences")
    add("--first-seed", type=int, default=100, help="number of the first world")
    add(
        "--output",
        type=str | None,
        default=None,
        help="folder for table.md, table.json and lab.log (default: RUNS/lab)",
    )
    add("--worlds", type=str, default="worlds", help="folder of the worlds")
    add("--runs", type=str, default="runs", help="folder of the runs")
    add("--corpora", type=str, default="corpora", help="folder of the prepared corpora")
    return parser
