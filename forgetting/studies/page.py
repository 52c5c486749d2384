"""A table as a page of its own."""

import html

from forgetting.studies.rows import further_text, pair_rows, text_rows
from forgetting.studies.table import Table

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
        + f"{further_text(table, part)}</li>"
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
