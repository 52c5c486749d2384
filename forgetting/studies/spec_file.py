"""Reads a table's YAML, and refuses what does not fit together: one message that names the place."""

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from forgetting.artifacts import inside
from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS
from forgetting.studies.spec import (
    Backbone,
    CorpusSource,
    Figure,
    Group,
    Origin,
    Overhead,
    Row,
    Runs,
    Stage,
    Stated,
    TableSpec,
    Total,
    Value,
)

STAGES = ("fit", "score")
"""What `cost.json` times and a table may show."""

MOST_DECIMALS = 10


def load_spec(path: Path) -> TableSpec:
    """Read a table's YAML.

    Raises:
        UserError: The file is missing or no YAML, has an unknown or missing key, a value of another kind than expected,
            or parts that do not fit together.
    """
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"There is no table {path}. Tables in {path.parent}: {', '.join(there) or 'none'}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is no table: it is nested too deeply.") from None
    required = {"title", "caption", "columns", "groups"}
    optional = {"suite", "suite_file", "corpus", "decimals", "figure", "stated", "notes"}
    _check_keys(content, required, required | optional, f"{path}")
    columns = _texts(content["columns"], f"{path}, columns")
    groups = _list(content["groups"], f"{path}, groups")
    spec = TableSpec(
        name=path.stem,
        title=_text(content["title"], f"{path}, title"),
        caption=_text(content["caption"], f"{path}, caption"),
        columns=columns,
        groups=tuple(_group(group, columns, f"{path}, group {n}") for n, group in enumerate(groups, start=1)),
        suite=_optional(content, "suite", _text, f"{path}"),
        suite_file=_optional(content, "suite_file", _text, f"{path}"),
        corpus=_optional(content, "corpus", _experiment, f"{path}"),
        decimals=_decimals(content.get("decimals", TableSpec.decimals), f"{path}, decimals"),
        figure=_optional(content, "figure", _figure, f"{path}"),
        stated=tuple(_stated(item, f"{path}, stated") for item in _list(content.get("stated", []), f"{path}, stated")),
        notes=_texts(content.get("notes", []), f"{path}, notes"),
    )
    _check_columns_and_names(spec, path)
    _check_references(spec, path)
    _check_origins(spec, path)
    _check_figure(spec, path)
    return spec


# --- parts -----------------------------------------------------------------------------------------------------------


def _group(content: Any, columns: tuple[str, ...], place: str) -> Group:
    _check_keys(content, {"name", "rows"}, {"name", "rows", "compare"}, place)
    name = _text(content["name"], f"{place}, name")
    rows = _list(content["rows"], f"{place}, rows")
    pairs = _list(content.get("compare", []), f"{place}, compare")
    return Group(
        name,
        tuple(_row(row, columns, f"{place}, row {n}") for n, row in enumerate(rows, start=1)),
        tuple(_pair(pair, f"{place}, compare") for pair in pairs),
    )


_ORIGINS: dict[str, Callable[[dict[str, Any], str], Origin]] = {
    "run": lambda row, place: Runs(_experiment(row["run"], f"{place}, run")),
    "base": lambda row, place: Backbone(_text(row["base"], f"{place}, base")),
    "stage": lambda row, place: _stage(row, place),
    "total": lambda row, place: Total(_texts(row["total"], f"{place}, total")),
    "overhead": lambda row, place: Overhead(*_pair(row["overhead"], f"{place}, overhead")),
    "source": lambda row, place: CorpusSource(_text(row["source"], f"{place}, source")),
}


def _row(content: Any, columns: tuple[str, ...], place: str) -> Row:
    _check_keys(content, {"name"}, {"name", "paper", "at", "runs", *_ORIGINS}, place)
    name = _text(content["name"], f"{place}, name")
    place = f"{place} {name!r}"
    kinds = [key for key in _ORIGINS if key in content]
    if len(kinds) != 1:
        raise UserError(f"{place} has {kinds or 'none'} of {', '.join(_ORIGINS)}; exactly one is expected.")
    if ("runs" in content) != (kinds == ["stage"]):
        raise UserError(f"{place}: `runs` and `stage` belong together, a stage having one run per column.")
    origin = _ORIGINS[kinds[0]](content, place)
    paper = _list(content.get("paper", [None] * len(columns)), f"{place}, paper")
    if len(paper) != len(columns):
        raise UserError(
            f"{place} has {len(paper)} paper values for {len(columns)} columns; write null where it has none."
        )
    values = tuple(None if value is None else parse_value(value, place) for value in paper)
    at = content.get("at", {})
    if not isinstance(at, dict):
        raise UserError(f"{place}, at: a mapping from axes to numbers was expected, not {_kind(at)}.")
    return Row(name, origin, values, {_text(k, f"{place}, at"): _number(x, f"{place}, at.{k}") for k, x in at.items()})


def _stage(row: dict[str, Any], place: str) -> Stage:
    if row["stage"] not in STAGES:
        raise UserError(f"{place}, stage: one of {', '.join(STAGES)} was expected, not {_kind(row['stage'])}.")
    runs = _texts(row.get("runs", []), f"{place}, runs")
    return Stage(row["stage"], tuple(_experiment(run, f"{place}, runs") for run in runs))


def parse_value(text: Any, place: str) -> Value:
    """`44.83±0.45`, or a number without a standard deviation."""
    number = r"\d+(?:\.\d*)?|\.\d+"
    match = re.fullmatch(rf"(-?(?:{number}))(?:\s*±\s*({number}))?", str(text)) if not _is_container(text) else None
    if match is None:
        raise UserError(f"{place}: {_kind(text)} is not a number nor mean±sd.")
    return Value(float(match[1]), None if match[2] is None else float(match[2]))


def _figure(content: Any, place: str) -> Figure:
    _check_keys(content, {"kind", "x", "column"}, {"kind", "x", "y", "column"}, place)
    if content["kind"] not in ("lines", "heatmap"):
        raise UserError(f"{place}: kind is {_kind(content['kind'])}; lines or heatmap is expected.")
    if ("y" in content) != (content["kind"] == "heatmap"):
        raise UserError(f"{place}: a heatmap has a y, lines have none.")
    return Figure(
        content["kind"],
        _text(content["x"], f"{place}, x"),
        _text(content["column"], f"{place}, column"),
        _optional(content, "y", _text, place),
    )


def _stated(content: Any, place: str) -> Stated:
    required = {"where", "value", "group", "row"}
    _check_keys(content, required, required | {"over", "column", "slip"}, place)
    texts = {key: _text(value, f"{place}, {key}") for key, value in content.items() if key != "value"}
    return Stated(value=_number(content["value"], f"{place}, value"), **texts)


# --- what fits together ----------------------------------------------------------------------------------------------


def _check_columns_and_names(spec: TableSpec, path: Path) -> None:
    for name, found in (("columns", spec.columns), ("groups", spec.groups)):
        if not found:
            raise UserError(f"{path} has no {name}.")
    for group in spec.groups:
        if not group.rows:
            raise UserError(f"{path}, group {group.name!r} has no rows.")
        _refuse_twice([row.name for row in group.rows], f"{path}, group {group.name!r}: the row")
    _refuse_twice([group.name for group in spec.groups], f"{path}: the group")
    _refuse_twice(spec.columns, f"{path}: the column")


def _refuse_twice(names: Any, what: str) -> None:
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(
            f"{what} {twice[0]!r} is there {Counter(names)[twice[0]]} times: what names it would be ambiguous."
        )


def _check_references(spec: TableSpec, path: Path) -> None:
    """Names of rows, groups and columns that other parts of the table use must exist."""
    names = {(group.name, row.name) for group, row in spec.rows()}
    used = {(stated.group, row) for stated in spec.stated for row in (stated.row, stated.over) if row is not None}
    used |= {(group.name, row) for group in spec.groups for pair in group.compare for row in pair}
    if missing := used - names:
        raise UserError(f"{path} refers to rows that it does not have: {sorted(missing)}.")
    for stated in spec.stated:
        if stated.column not in spec.columns:
            raise UserError(
                f"{path}, stated: there is no column {stated.column!r}; there are {', '.join(spec.columns)}."
            )
    compared = [group.row(name) for group in spec.groups for pair in group.compare for name in pair]
    if other := [row.name for row in compared if not isinstance(row.origin, Runs)]:
        raise UserError(f"{path} compares {other[0]!r}: only rows with a `run` can be compared.")
    plain, above = Counter(row.name for _, row in spec.rows()), set[str]()
    for _, row in spec.rows():
        parts = {Total: lambda o: o.rows, Overhead: lambda o: (o.row, o.over)}.get(type(row.origin), lambda o: ())
        for part in parts(row.origin):
            if part not in above or plain[part] > 1:
                raise UserError(
                    f"{path}, row {row.name!r} refers to the row {part!r}; exactly one of that name, above it, is "
                    "expected."
                )
        above.add(row.name)


def _check_origins(spec: TableSpec, path: Path) -> None:
    """Rows need what their numbers come from."""
    for _, row in spec.rows():
        place, origin = f"{path}, row {row.name!r}", row.origin
        if isinstance(origin, (Runs, Backbone)) and spec.suite is None:
            raise UserError(f"{place} shows results of a benchmark: give `suite`, the name of the suite.")
        if isinstance(origin, Stage) and len(origin.experiments) != len(spec.columns):
            raise UserError(f"{place} needs one run a column ({len(spec.columns)}).")
        if isinstance(origin, CorpusSource) and spec.corpus is None:
            raise UserError(f"{place} counts a corpus: give `corpus`, an experiment that uses it.")
        if isinstance(origin, CorpusSource) and len(spec.columns) != 4:
            raise UserError(f"{place} counts a corpus: four columns are expected, number and percent of two splits.")


def _check_figure(spec: TableSpec, path: Path) -> None:
    figure = spec.figure
    if figure is None:
        return
    if figure.column not in spec.columns:
        raise UserError(f"{path}, figure: there is no column {figure.column!r}; there are {', '.join(spec.columns)}.")
    axes = [axis for axis in (figure.x, figure.y) if axis is not None]
    for group in spec.groups:
        for row in group.rows:
            if missing := [axis for axis in axes if axis not in row.at]:
                raise UserError(f"{path}, row {row.name!r} has no {missing[0]!r} in `at`, where the figure draws it.")
    places = [tuple(row.at[axis] for axis in axes) for _, row in spec.rows()]
    if figure.kind == "heatmap" and len(set(places)) < len(places):
        raise UserError(f"{path}, figure: two rows lie in one cell of the heatmap.")


# --- kinds of values -------------------------------------------------------------------------------------------------


def _optional(content: dict[str, Any], key: str, read: Callable[[Any, str], Any], place: str) -> Any:
    return read(content[key], f"{place}, {key}") if key in content else None


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: text was expected, not {_kind(value)}.")
    return value


def _texts(value: Any, place: str) -> tuple[str, ...]:
    return tuple(_text(item, place) for item in _list(value, place))


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{place}: a list was expected, not {_kind(value)}.")
    return value


def _pair(value: Any, place: str) -> tuple[str, str]:
    names = _texts(value, place)
    if len(names) != 2:
        raise UserError(f"{place}: two names of rows were expected, not {len(names)}.")
    return names[0], names[1]


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{place}: a number was expected, not {_kind(value)}.")
    return float(value)


def _decimals(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_DECIMALS:
        raise UserError(f"{place}: a whole number from 0 to {MOST_DECIMALS} was expected, not {_kind(value)}.")
    return value


def _experiment(value: Any, place: str) -> str:
    name = _text(value, place)
    try:
        inside(Path(EXPERIMENTS), name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return name


def _is_container(value: Any) -> bool:
    return isinstance(value, (list, dict))


def _kind(value: Any) -> str:
    """A value in a message, a large one by its kind alone."""
    if _is_container(value):
        return "a list" if isinstance(value, list) else "a mapping"
    return "nothing" if value is None else repr(value)[:80]


def _check_keys(content: Any, required: set[str], known: set[str], place: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{place} is not a mapping.")
    if missing := required - set(content):
        raise UserError(f"{place} lacks {', '.join(sorted(missing))}.")
    if unknown := {str(key) for key in content if key not in known}:
        raise UserError(f"{place} has unknown keys {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}.")
