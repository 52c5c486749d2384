"""The command `table`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from forgetting.arguments import parse
from forgetting.errors import UserError

DRAWN = ("svg", "png")


def table_command(arguments: list[str]) -> None:
    """A table or figure of the paper: ours beside the paper's, from the run folders that are there."""
    options = parse(_parser(), arguments)
    from forgetting.artifacts import complete_or_absent
    from forgetting.studies.collect import collect
    from forgetting.studies.render import FORMATS, SUFFIXES, render
    from forgetting.studies.runs import RunFolders
    from forgetting.studies.spec_file import load_spec

    outputs = [Path(output) for output in options.output or []]
    if options.format and len(outputs) > 1:
        raise UserError("Give --format with one --output; several are told apart by their suffixes.")
    forms = [options.format or SUFFIXES.get(output.suffix, output.suffix) for output in outputs]
    forms = forms or [options.format or "markdown"]
    for form in forms:
        if form not in (*FORMATS, *DRAWN):
            raise UserError(
                f"The format {form!r} is unknown; use --format {', '.join([*FORMATS, *DRAWN])}, "
                f"or an --output that ends in {', '.join(SUFFIXES)}."
            )
        if form in DRAWN and not outputs:
            raise UserError(f"--format {form} needs --output FILE.")
    spec = load_spec(Path(options.spec))
    corpus = Path(options.corpus) if options.corpus else None
    runs = RunFolders(Path(options.runs), options.variant, options.protocol, corpus)
    table = collect(spec, runs, intervals=any(form not in DRAWN for form in forms))
    if not outputs:
        print(render(table, forms[0]), end="")
    for output, form in zip(outputs, forms, strict=False):
        if form in DRAWN:
            from forgetting.studies.figures import draw

            draw(table, output, form)
        else:
            with complete_or_absent(output) as temporary:
                temporary.write_text(render(table, form), encoding="utf-8")
        print(output)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        prog="python -m forgetting table",
        description="A table or figure of the paper: ours beside the paper's, from the run folders that are there.",
    )
    add = parser.add_argument
    add("spec", type=str, help="the table's specification, such as experiments/tables/table3.yaml")
    add("--format", type=str | None, default=None, help="markdown, latex, csv or html; figures: svg or png too")
    add("--output", type=str, nargs="+", help="files to write, the suffix giving the format (default: print)")
    add("--runs", type=str, default="runs", help="folder of the runs")
    add("--corpus", type=str | None, default=None, help="folder of a prepared corpus (Table 1), as prepare prints it")
    add("--variant", type=str | None, default=None, help="read <experiment>@<variant>, such as file-order")
    add("--protocol", type=str, default="corrected", help="of the evaluation: corrected, published or token_stop")
    return parser
