"""CSV and TSV files: what separates their fields, and their rows as text, exactly as they stand."""

import csv
import re
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from typing import Any

from forgetting.corpus.configuration import Source
from forgetting.errors import UserError

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
SEPARATORS = (",", ";", "\t", "|")
"""What may separate the fields of a CSV or TSV file."""
ROWS_TO_SNIFF = 20


def separated_rows(
    source: Source, text: TextIOWrapper, form: str, quoted: bool, where: str
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The columns of a CSV or TSV file and its rows.

    Args:
        source: Its options.
        text: The file, open.
        form: csv or tsv.
        quoted: Whether fields may stand in double quotes.
        where: The file, for messages.

    Raises:
        UserError: A line has another number of fields, or the first is a header that `column_names` repeats.
    """
    csv.field_size_limit(2**31 - 1)
    separator = _separator(text, form, quoted, source.column_names)
    text.seek(0)
    try:
        numbered = list(_records(text, separator, quoted))
    except csv.Error as error:
        raise UserError(
            f"{where}: not valid {form.upper()} ({error}). Set quoted: false if its fields do not stand in quotes."
        ) from None
    columns = source.column_names
    if columns is not None and numbered and _is_header(numbered[0][1], columns):
        raise UserError(
            f"{where}: the first line is a header ({', '.join(numbered[0][1])}), which column_names would make an "
            "example. column_names is for files without one: leave it out."
        )
    if columns is None and numbered:
        (_, columns), *numbered = numbered
    columns = columns or []
    for number, fields in numbered:
        if len(fields) != len(columns):
            raise UserError(
                f"{where}, line {number}: found {len(fields)} fields between {_named(separator)}, expected "
                f"{len(columns)} ({', '.join(columns)}). "
                "A file without a header row needs column_names; fields in double quotes need quoted: true."
                + _other_separator(fields, separator, len(columns))
            )
    if source.unescape:
        numbered = [(number, [_unescaped(field) for field in fields]) for number, fields in numbered]
    return columns, (dict(zip(columns, fields, strict=True)) for _, fields in numbered)


def _records(text: TextIOWrapper, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV or TSV file, each with the number of its last line; empty ones are left out."""
    if quoted:
        reader = csv.reader(text, delimiter=separator, strict=True)
        yield from ((reader.line_num, fields) for fields in reader if fields)
    else:
        lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(text, 1))
        yield from ((number, line.split(separator)) for number, line in lines if line)


def _separator(text: TextIOWrapper, form: str, quoted: bool, names: list[str] | None) -> str:
    """What separates the fields of a file: what its suffix says wherever that can be, else what its rows agree on.

    Spreadsheets of many countries write CSV files with semicolons. Another separator is taken only where the usual one
    does not cut the first rows into one number of fields, that of the `names` or at least two, and the other one does.
    """
    usual = "\t" if form == "tsv" else ","
    for separator in (usual, *(other for other in SEPARATORS if other != usual)):
        text.seek(0)
        try:
            widths = {len(fields) for _, fields in islice(_records(text, separator, quoted), ROWS_TO_SNIFF)}
        except csv.Error:
            continue
        if len(widths) == 1 and (widths != {1} if names is None else widths == {len(names)}):
            return separator
    return usual


def _is_header(fields: list[str], names: list[str]) -> bool:
    return [field.strip().lower() for field in fields] == [name.strip().lower() for name in names]


def _named(separator: str) -> str:
    return {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}[separator]


def _other_separator(fields: list[str], separator: str, expected: int) -> str:
    """A hint where a line looks as if something else separated its fields."""
    others = [other for other in SEPARATORS if other != separator and other in separator.join(fields)]
    if len(fields) > 1 or not others:
        return ""
    return (
        f" They seem to stand between {_named(others[0])}, which do not cut each of the first {ROWS_TO_SNIFF} lines "
        f"into {expected} fields: check those lines."
    )


def _unescaped(text: str) -> str:
    return re.sub(r"\\[nt\\]", lambda match: ESCAPES[match.group()], text) if "\\" in text else text
