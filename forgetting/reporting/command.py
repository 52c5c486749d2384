"""The command `table`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from forgetting.errors import UserError

DRAWN = ("svg", "png")


def table_command(arguments: list[str]) -> None:
    """A table or figure of the paper: ours beside the paper's, from the run folders that are there."""
    options = _parser().parse_args(arguments)
    from forgetting.artifacts import complete_or_absent
    from forgetting.reporting.collect import collect
    from forgetting.reporting.render import FORMATS, SUFFIXES, render
    from forgetting.reporting.runs import RunFolders
    from forgetting.reporting.spec import load_spec

    output = Path(options.output) if options.output else None
    form = options.format or (SUFFIXES.get(output.suffix) if output else "markdown")
    if form not in (*FORMATS, *DRAWN):
        raise UserError(
            f"The format {form or (output and output.suffix)!r} is unknown; use --format "
            f"{', '.join([*FORMATS, *DRAWN])}, or an --output that ends in {', '.join(SUFFIXES)}."
        )
    if form in DRAWN and output is None:
        raise UserError(f"--format {form} needs --output FILE.")
    spec = load_spec(Path(options.spec))
    runs = RunFolders(Path(options.runs), options.variant, options.protocol, Path(options.corpora))
    table = collect(spec, runs, intervals=form not in DRAWN)
    if form in DRAWN:
        from forgetting.reporting.figures import draw

        assert output is not None
        draw(table, output, form)
    elif output is None:
        print(render(table, form), end="")
    else:
        with complete_or_absent(output) as temporary:
            temporary.write_text(render(table, form), encoding="utf-8")
    if output is not None:
        print(output)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m forgetting table",
        description="A table or figure of the paper: ours beside the paper's, from the run folders that are there.",
    )
    add = parser.add_argument
    add("spec", type=str, help="the table's specification, such as experiments/tables/table3.yaml")
    add("--format", type=str | None, default=None, help="markdown, latex, csv or html; figures: svg or png too")
    add("--output", type=str | None, default=None, help="file to write; its suffix gives the format (default: print)")
    add("--runs", type=str, default="runs", help="folder of the runs")
    add("--corpora", type=str, default="corpora", help="folder of the prepared corpora (Table 1)")
    add("--variant", type=str | None, default=None, help="read <experiment>@<variant>, such as published")
    add("--protocol", type=str, default="corrected", help="of the evaluation: corrected, published or token_stop")
    return parser
