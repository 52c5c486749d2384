"""The command `lab`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from forgetting.arguments import parse
from forgetting.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from forgetting.lab.comparison import TextTable


def lab_command(arguments: list[str]) -> None:
    """Generate worlds, run the paper's comparison in each, and print the table and how well Q found the noise."""
    options = parse(_parser(), arguments)
    if options.seeds < 1 or options.first_seed < 0:
        raise UserError(
            f"--seeds is {options.seeds} and --first-seed {options.first_seed}; expected at least 1 and at least 0."
        )
    from rich.console import Console

    from forgetting.artifacts import complete_or_absent, write_json
    from forgetting.lab.comparison import Comparison
    from forgetting.lab.laboratory import Laboratory
    from forgetting.lab.stages import Stages, output_in_file
    from forgetting.lab.world import World

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    output = Path(options.output) if options.output else Path(options.runs) / "lab"
    laboratory = Laboratory(Path(options.worlds), Path(options.runs), Path(options.corpora))
    stages = Stages(laboratory.stages_per_world * len(seeds), Console(stderr=True))
    log = output / "lab.log"
    stages.console.print(f"what the stages print goes to {log}", markup=False, highlight=False)
    with stages.shown(), output_in_file(log):
        comparison = Comparison([laboratory.run(World(seed), stages) for seed in seeds])
    write_json(output / "table.json", comparison.record())
    tables = comparison.tables()
    with complete_or_absent(output / "table.md") as temporary:
        temporary.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    show(tables, Console() if sys.stdout.isatty() else Console(width=120))
    print(f"{output / 'table.md'}, {output / 'table.json'}")


def show(tables: "list[TextTable]", console: "Console") -> None:
    """Print tables on a console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for text in tables:
        table = Table(title=text.title, title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(text.head):
            table.add_column(name, justify="right" if number else "left")
        for row in text.rows:
            table.add_row(*row)
        console.print(table)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
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
