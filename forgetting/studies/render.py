"""Tables as Markdown, LaTeX (booktabs), CSV and HTML. Every text is escaped for its format."""

import csv
import html
import io
import re
from collections.abc import Callable

from forgetting.errors import UserError
from forgetting.studies.rows import pair_rows, text_rows
from forgetting.studies.spec import BaseModel, Origin, Runs, Value
from forgetting.studies.table import Table


def markdown(table: Table) -> str:
    """GitHub's Markdown."""
    escape = _escape_markdown
    head = ["", "", *table.study.column_names]
    lines = [f"**{escape(table.study.title)}.** {escape(table.study.caption)}".rstrip(), ""]
    for section in table.sections:
        rows = [
            [escape(row.name), escape(row.reading)]
            + [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
            for row in text_rows(table, section)
        ]
        lines += [f"{escape(section.name)}", "", *_pipes([[escape(text) for text in head], *rows]), ""]
    if pairs := pair_rows(table):
        lines += ["Paired differences (95 % interval)", ""]
        lines += [
            *_pipes([["", "", *map(escape, table.study.column_names)], *[[escape(t) for t in row] for row in pairs]]),
            "",
        ]
    if notes := table.notes():
        lines += [*(f"- {escape(note)}" for note in notes), ""]
    if missing := table.missing():
        lines += [f"Missing (all of it: `{table.everything}`)", ""]
        for part in missing:
            commands = ", then ".join(f"`{command}`" for command in part.commands)
            lines += [f"- {escape(part.rows)}: {commands}{part.further}"]
    return "\n".join(lines).rstrip() + "\n"


def _pipes(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        "| " + " | ".join(t.ljust(w) if c < 2 else t.rjust(w) for c, (t, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) if c < 2 else "-" * (w + 1) + ":" for c, w in enumerate(widths))
    return [f"{line} |" for line in (aligned[0],)] + [f"{rule}|"] + [f"{line} |" for line in aligned[1:]]


def latex(table: Table) -> str:
    """A `table` environment; needs booktabs."""
    escape, width = _escape_latex, len(table.study.column_names) + 2
    lines = [r"\begin{table}", r"\centering", r"\caption{" + escape(table.study.caption) + "}"]
    lines += [rf"\label{{tab:{table.study.name}}}", rf"\begin{{tabular}}{{ll{'r' * (width - 2)}}}", r"\toprule"]
    lines += [" & ".join(["Method", "", *map(escape, table.study.column_names)]) + r" \\"]
    for section in table.sections:
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{{escape(section.name)}}} \\", r"\midrule"]
        for row in text_rows(table, section):
            cells = [rf"\textbf{{{escape(c.text)}}}" if c.best else escape(c.text) for c in row.cells]
            lines.append(" & ".join([escape(row.name), escape(row.reading), *cells]) + r" \\")
    if pairs := pair_rows(table):
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{Paired differences (95\,\% interval)}} \\", r"\midrule"]
        lines += [" & ".join(map(escape, row)) + r" \\" for row in pairs]
    lines += [r"\bottomrule", r"\end{tabular}"]
    for note in table.notes():
        lines.append(rf"\par\footnotesize {escape(note)}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def comma_separated(table: Table) -> str:
    """One line per cell, for further computing; numbers are not rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = "table group row run seeds column ours ours_sd paper paper_sd difference"
    writer.writerow(names.split())
    for section in table.sections:
        for line in section.lines:
            start = [table.study.name, section.name, line.row.name, _run(line.row.origin), line.num_runs]
            for column, ours, paper in zip(table.study.column_names, line.ours, line.row.paper, strict=True):
                difference = ours.mean - paper.mean if ours and paper else None
                fields = [*_mean_sd(ours), *_mean_sd(paper), difference]
                writer.writerow([*start, column, *("" if field is None else f"{field:.10g}" for field in fields)])
    return text.getvalue()


def _run(origin: Origin) -> str:
    """An experiment with its overrides, or a model."""
    match origin:
        case Runs(experiment, overrides):
            return " ".join([experiment, *overrides])
        case BaseModel(target):
            return target or ""
        case _:
            return ""


def _mean_sd(value: Value | None) -> tuple[float | None, float | None]:
    return (None, None) if value is None else (value.mean, value.sd)


def _escape_markdown(text: str) -> str:
    """Escape what Markdown would read as markup, and leave the rest readable as it stands."""
    return re.sub(r"([\\|*<>`]|(?<!\w)_|_(?!\w)|\](?=[(\[]))", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": r"$-$", "λ": r"$\lambda$",
    "ρ": r"$\rho$", "—": "---", "§": r"\S{}", "<": r"$<$", ">": r"$>$", "≥": r"$\geq$", "·": r"$\cdot$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1c1c1c; background: #fff }
h1 { font-size: 1.3rem; margin-bottom: .3rem } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-block: 2px solid #1c1c1c; margin: 1rem 0 }
th, td { padding: .2rem .5rem; text-align: right; white-space: nowrap }
tr.pair > * { vertical-align: top; line-height: 1.25 } tr.pair th { white-space: normal }
th[scope=row], th.group, td.reading { text-align: left; font-weight: normal }
th.group { font-style: italic; border-block: 1px solid #999 }
tr.ours > *, tr.pair > * { border-top: 1px solid #e4e4e4 } tr.paper, tr.difference, .reading { color: #626262 }
thead th { border-bottom: 1px solid #1c1c1c } li { margin: .2rem 0 }
code { background: #f2f2f2; padding: .1rem .3rem; overflow-wrap: anywhere }
"""


def page(table: Table) -> str:
    """A page of its own, nothing loaded from elsewhere."""
    escape, width = html.escape, len(table.study.column_names) + 2
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in table.study.column_names)
    body = []
    for section in table.sections:
        body.append(f"<tr><th class=group colspan={width}>{escape(section.name)}</th></tr>")
        for row in text_rows(table, section):
            cells = "".join(f"<td>{'<b>' * c.best}{escape(c.text)}{'</b>' * c.best}</td>" for c in row.cells)
            kind = row.reading if row.reading in ("paper", "difference") else "ours"
            body.append(
                f"<tr class={kind}><th scope=row>{escape(row.name)}</th>"
                f"<td class=reading>{escape(row.reading)}</td>{cells}</tr>"
            )
    if pairs := pair_rows(table):
        body.append(f"<tr><th class=group colspan={width}>Paired differences (95 % interval)</th></tr>")
        for name, group, *cells in pairs:
            texts = "".join(f"<td>{escape(text).replace(' [', '<br>[')}</td>" for text in cells)
            label = f"<th scope=row>{escape(name)}</th><td class=reading>{escape(group)}</td>"
            body.append(f"<tr class=pair>{label}{texts}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes())
    missing = "".join(
        f"<li>{escape(part.rows)}: "
        + ", then ".join(f"<code>{escape(command)}</code>" for command in part.commands)
        + f"{part.further}</li>"
        for part in table.missing()
    )
    if missing:
        missing = f"<h2>Missing</h2><p>All of it: <code>{escape(table.everything)}</code></p><ul>{missing}</ul>"
    title = escape(table.study.title)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1><p>{escape(table.study.caption)}</p>\n<div class=scroll><table>\n"
        f"<thead><tr><th></th><th></th>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>\n"
        f"<ul>{notes}</ul>\n{missing}</body></html>\n"
    )


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown, "latex": latex, "csv": comma_separated, "html": page,
}  # fmt: skip
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html", ".svg": "svg", ".png": "png"}


def render(table: Table, form: str) -> str:
    """A table as text.

    Raises:
        UserError: There is no such format.
    """
    if form not in FORMATS:
        raise UserError(f"There is no format {form}; use one of {', '.join(FORMATS)}.")
    return FORMATS[form](table)
