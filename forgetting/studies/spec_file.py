"""Reads a study's YAML, and refuses what does not fit together: one message that names the place."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from forgetting.artifacts import inside
from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS
from forgetting.studies.spec import (
    INLINE,
    NOISE_MEASURES,
    BaseModel,
    Column,
    CorpusSource,
    Figure,
    Group,
    Origin,
    Overhead,
    Row,
    Runs,
    Stage,
    Stated,
    Study,
    Total,
)
from forgetting.studies.spec_checks import check_study
from forgetting.studies.spec_places import experiments_folder, file_near, repeat_near, suite_near
from forgetting.studies.spec_values import (
    check_keys,
    decimals,
    items,
    kind,
    mapping,
    mean_and_sd,
    number,
    optional,
    pair,
    seeds,
    text,
    texts,
)

STAGES = ("fit", "score")
"""Stages that `cost.json` times and a row may show."""

COSTS = ("fit", "evaluate")
"""Stages of a run itself, which a column may show."""

SETTABLE = ("model", "data", "trainer", "seed_everything")
"""Groups of settings that a row may change."""

OPTIONAL = {
    "caption", "suite", "experiments", "config", "overlays", "repeats", "seeds", "corpus", "decimals", "figure",
    "stated", "notes",
}  # fmt: skip


def load_study(path: Path) -> Study:
    """Read a study's YAML.

    Raises:
        UserError: The file is missing or no YAML, has an unknown or missing key, a value of another kind than expected,
            or parts that do not fit together.
    """
    if not path.is_file():
        existing = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"There is no study {path}. YAML files in {path.parent}: {', '.join(existing) or 'none'}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is no study: it is nested too deeply.") from None
    required = {"title", "columns", "groups"}
    check_keys(content, required, required | OPTIONAL, f"{path}")
    columns = tuple(_column(column, f"{path}, columns") for column in items(content["columns"], f"{path}, columns"))
    groups = items(content["groups"], f"{path}, groups")
    is_inline = "config" in content
    study = Study(
        path=path,
        title=text(content["title"], f"{path}, title"),
        caption=optional(content, "caption", text, f"{path}") or "",
        columns=columns,
        groups=tuple(
            _group(group, len(columns), is_inline, f"{path}, group {n}") for n, group in enumerate(groups, start=1)
        ),
        suite=suite_near(content.get("suite"), path, f"{path}, suite"),
        experiments=experiments_folder(content.get("experiments"), path),
        config=mapping(content["config"], f"{path}, config", "with model and data") if is_inline else None,
        overlays=tuple(
            file_near(file, path, f"{path}, overlays")
            for file in items(content.get("overlays", []), f"{path}, overlays")
        ),
        repeats=tuple(
            repeat_near(repeat, path, f"{path}, repeats")
            for repeat in items(content.get("repeats", []), f"{path}, repeats")
        ),
        seeds=seeds(content["seeds"], f"{path}, seeds") if "seeds" in content else Study.seeds,
        corpus=optional(content, "corpus", _experiment, f"{path}"),
        decimals=decimals(content.get("decimals", Study.decimals), f"{path}, decimals"),
        figure=optional(content, "figure", _figure, f"{path}"),
        stated=tuple(_stated(item, f"{path}, stated") for item in items(content.get("stated", []), f"{path}, stated")),
        notes=texts(content.get("notes", []), f"{path}, notes"),
    )
    if study.repeats and "seeds" in content:
        raise UserError(f"{path} has `repeats` and `seeds`: the repetitions are one or the other. Remove one of them.")
    check_study(study)
    return study


# --- parts -----------------------------------------------------------------------------------------------------------


def _column(content: Any, place: str) -> Column:
    if not isinstance(content, dict):
        return Column(text(content, place))
    kinds = [key for key in ("metric", "cost", "noise") if key in content]
    check_keys(content, {"name"}, {"name", "metric", "cost", "noise", "decimals"}, place)
    name = text(content["name"], f"{place}, name")
    if len(kinds) != 1:
        raise UserError(f"{place}, {name!r} has {kinds or 'none'} of metric, cost, noise; exactly one is expected.")
    key = text(content[kinds[0]], f"{place}, {name!r}")
    if kinds == ["cost"] and key not in COSTS:
        raise UserError(f"{place}, {name!r}: cost is {key!r}; one of {', '.join(COSTS)} was expected.")
    if kinds == ["noise"] and key not in NOISE_MEASURES and not key.startswith("recall/"):
        known = ", ".join([*NOISE_MEASURES, "recall/<kind>"])
        raise UserError(f"{place}, {name!r}: noise is {key!r}; one of {known} was expected.")
    return Column(name, kinds[0], key, optional(content, "decimals", decimals, place))  # type: ignore[arg-type]


def _group(content: Any, num_columns: int, is_inline: bool, place: str) -> Group:
    check_keys(content, {"name", "rows"}, {"name", "rows", "compare"}, place)
    rows = items(content["rows"], f"{place}, rows")
    return Group(
        text(content["name"], f"{place}, name"),
        tuple(_row(row, num_columns, is_inline, f"{place}, row {n}") for n, row in enumerate(rows, start=1)),
        tuple(pair(names, f"{place}, compare") for names in items(content.get("compare", []), f"{place}, compare")),
    )


_ORIGINS: dict[str, Callable[[dict[str, Any], str], Origin]] = {
    "run": lambda row, place: Runs(_experiment(row["run"], f"{place}, run"), _overrides(row.get("set", {}), place)),
    "base": lambda row, place: BaseModel(None if row["base"] is True else text(row["base"], f"{place}, base")),
    "stage": lambda row, place: _stage(row, place),
    "total": lambda row, place: Total(texts(row["total"], f"{place}, total")),
    "overhead": lambda row, place: Overhead(*pair(row["overhead"], f"{place}, overhead")),
    "source": lambda row, place: CorpusSource(text(row["source"], f"{place}, source")),
}


def _row(content: Any, num_columns: int, is_inline: bool, place: str) -> Row:
    check_keys(content, {"name"}, {"name", "paper", "at", "runs", "set", *_ORIGINS}, place)
    name = text(content["name"], f"{place}, name")
    place = f"{place} {name!r}"
    kinds = [key for key in _ORIGINS if key in content]
    if not kinds and is_inline:
        kinds, content = ["run"], content | {"run": INLINE}
    if len(kinds) != 1:
        raise UserError(f"{place} has {kinds or 'none'} of {', '.join(_ORIGINS)}; exactly one is expected.")
    if ("runs" in content) != (kinds == ["stage"]):
        raise UserError(f"{place}: `runs` and `stage` belong together, a stage having one run per column.")
    if "set" in content and kinds != ["run"]:
        raise UserError(f"{place}: `set` changes a run, and this row has none.")
    origin = _ORIGINS[kinds[0]](content, place)
    paper = items(content.get("paper", [None] * num_columns), f"{place}, paper")
    if len(paper) != num_columns:
        raise UserError(
            f"{place} has {len(paper)} paper values for {num_columns} columns; write null where it has none."
        )
    values = tuple(None if value is None else mean_and_sd(value, place) for value in paper)
    at = mapping(content.get("at", {}), f"{place}, at", "from axes to numbers")
    return Row(name, origin, values, {axis: number(x, f"{place}, at.{axis}") for axis, x in at.items()})


def _overrides(content: Any, place: str) -> tuple[str, ...]:
    """`{data.positive_fraction: 0.5}` as the command line takes it: `--data.positive_fraction=0.5`."""
    options = []
    for key, value in mapping(content, f"{place}, set", "from settings to values").items():
        if not re.fullmatch(r"[a-z_]\w*(\.\w+)*", key) or key.split(".")[0] not in SETTABLE:
            raise UserError(
                f"{place}, set: {key!r} is no setting; {', '.join(SETTABLE)} and what they hold can be set."
            )
        options.append(f"--{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return tuple(options)


def _stage(row: dict[str, Any], place: str) -> Stage:
    if row["stage"] not in STAGES:
        raise UserError(f"{place}, stage: one of {', '.join(STAGES)} was expected, not {kind(row['stage'])}.")
    runs = texts(row.get("runs", []), f"{place}, runs")
    return Stage(row["stage"], tuple(_experiment(run, f"{place}, runs") for run in runs))


def _figure(content: Any, place: str) -> Figure:
    check_keys(content, {"kind", "x", "column"}, {"kind", "x", "y", "column"}, place)
    if content["kind"] not in ("lines", "heatmap"):
        raise UserError(f"{place}: kind is {kind(content['kind'])}; lines or heatmap is expected.")
    if ("y" in content) != (content["kind"] == "heatmap"):
        raise UserError(f"{place}: a heatmap has a y, lines have none.")
    return Figure(
        content["kind"],
        text(content["x"], f"{place}, x"),
        text(content["column"], f"{place}, column"),
        optional(content, "y", text, place),
    )


def _stated(content: Any, place: str) -> Stated:
    required = {"where", "value", "group", "row"}
    check_keys(content, required, required | {"over", "column", "slip"}, place)
    given = {key: text(value, f"{place}, {key}") for key, value in content.items() if key != "value"}
    return Stated(value=number(content["value"], f"{place}, value"), **given)


def _experiment(value: Any, place: str) -> str:
    name = text(value, place)
    try:
        inside(Path(EXPERIMENTS), name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return name
