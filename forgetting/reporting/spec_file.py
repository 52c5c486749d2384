"""Reads a table's YAML, and refuses what does not fit together."""

import re
from pathlib import Path
from typing import Any

import yaml

from forgetting.errors import UserError
from forgetting.reporting.spec import (
    Backbone,
    CorpusSource,
    Figure,
    Group,
    Overhead,
    Row,
    Runs,
    Stage,
    Stated,
    TableSpec,
    Total,
    Value,
)


def load_spec(path: Path) -> TableSpec:
    """Read a table's YAML.

    Raises:
        UserError: The file is missing, has an unknown or missing key, or a row whose values do not fit the columns.
    """
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"There is no table {path}. Tables in {path.parent}: {', '.join(there) or 'none'}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    required = {"title", "caption", "columns", "groups"}
    _check_keys(
        content,
        required,
        required | {"suite", "suite_file", "corpus", "decimals", "figure", "stated", "notes"},
        f"{path}",
    )
    columns = tuple(content["columns"])
    spec = TableSpec(
        name=path.stem,
        columns=columns,
        groups=tuple(_group(group, columns, path) for group in content["groups"]),
        figure=_figure(content["figure"], path) if "figure" in content else None,
        stated=tuple(_stated(item, path) for item in content.get("stated", ())),
        notes=tuple(content.get("notes", ())),
        **{
            key: content[key]
            for key in ("title", "caption", "suite", "suite_file", "corpus", "decimals")
            if key in content
        },
    )
    _check_references(spec, path)
    return spec


def _group(content: dict[str, Any], columns: tuple[str, ...], path: Path) -> Group:
    _check_keys(content, {"name", "rows"}, {"name", "rows", "compare"}, f"{path}, a group")
    rows = tuple(_row(row, columns, f"{path}, row {row.get('name')!r}") for row in content["rows"])
    return Group(content["name"], rows, tuple((first, second) for first, second in content.get("compare", ())))


_ORIGINS = {
    "run": lambda row: Runs(row["run"]),
    "base": lambda row: Backbone(row["base"]),
    "stage": lambda row: Stage(row["stage"], tuple(row["runs"])),
    "total": lambda row: Total(tuple(row["total"])),
    "overhead": lambda row: Overhead(*row["overhead"]),
    "source": lambda row: CorpusSource(row["source"]),
}


def _row(content: dict[str, Any], columns: tuple[str, ...], place: str) -> Row:
    _check_keys(content, {"name"}, {"name", "paper", "at", "runs", *_ORIGINS}, place)
    kinds = [key for key in _ORIGINS if key in content]
    if len(kinds) != 1:
        raise UserError(f"{place} has {kinds or 'none'} of {', '.join(_ORIGINS)}; exactly one is expected.")
    paper = content.get("paper", [None] * len(columns))
    if len(paper) != len(columns):
        raise UserError(
            f"{place} has {len(paper)} paper values for {len(columns)} columns; write null where it has none."
        )
    values = tuple(None if value is None else parse_value(value, place) for value in paper)
    return Row(
        content["name"],
        _ORIGINS[kinds[0]](content),
        values,
        {key: float(x) for key, x in content.get("at", {}).items()},
    )


def parse_value(text: str | float | int, place: str) -> Value:
    """`44.83±0.45`, or a number without a standard deviation."""
    match = re.fullmatch(r"([-\d.]+)(?:\s*±\s*([\d.]+))?", str(text))
    if match is None:
        raise UserError(f"{place}: {text!r} is not a number nor mean±sd.")
    return Value(float(match[1]), None if match[2] is None else float(match[2]))


def _figure(content: dict[str, Any], path: Path) -> Figure:
    _check_keys(content, {"kind", "x", "column"}, {"kind", "x", "y", "column"}, f"{path}, figure")
    if content["kind"] not in ("lines", "heatmap"):
        raise UserError(f"{path}, figure: kind is {content['kind']!r}; lines or heatmap is expected.")
    return Figure(**content)


def _stated(content: dict[str, Any], path: Path) -> Stated:
    required = {"where", "value", "group", "row"}
    _check_keys(content, required, required | {"over", "column", "slip"}, f"{path}, stated")
    content = {**content, "value": float(content["value"])}
    return Stated(**content)


def _check_references(spec: TableSpec, path: Path) -> None:
    """Names of rows, groups and columns that other parts of the table use must exist."""
    names = {(group.name, row.name) for group, row in spec.rows()}
    used = {(stated.group, row) for stated in spec.stated for row in (stated.row, stated.over) if row is not None}
    used |= {(group.name, row) for group in spec.groups for pair in group.compare for row in pair}
    compared = [group.row(name) for group in spec.groups for pair in group.compare for name in pair
                if (group.name, name) in names]  # fmt: skip
    if other := [row.name for row in compared if not isinstance(row.origin, Runs)]:
        raise UserError(f"{path} compares {other[0]!r}: only rows with a `run` can be compared.")
    if missing := used - names:
        raise UserError(f"{path} refers to rows that it does not have: {sorted(missing)}.")
    plain = {row.name for _, row in spec.rows()}
    for _, row in spec.rows():
        parts = {Total: lambda o: o.rows, Overhead: lambda o: (o.row, o.over)}.get(type(row.origin), lambda o: ())
        if missing := set(parts(row.origin)) - plain:
            raise UserError(f"{path}, row {row.name!r} refers to rows that the table does not have: {sorted(missing)}.")
        if isinstance(row.origin, Stage) and len(row.origin.experiments) != len(spec.columns):
            raise UserError(f"{path}, row {row.name!r} needs one run a column ({len(spec.columns)}).")
        if isinstance(row.origin, CorpusSource) and spec.corpus is None:
            raise UserError(f"{path}, row {row.name!r} counts a corpus: give `corpus`, an experiment that uses it.")


def _check_keys(content: Any, required: set[str], known: set[str], place: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{place} is not a mapping.")
    if missing := required - set(content):
        raise UserError(f"{place} lacks {', '.join(sorted(missing))}.")
    if unknown := set(content) - known:
        raise UserError(f"{place} has unknown keys {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}.")
