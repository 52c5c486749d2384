"""Reads a study's YAML, and refuses what does not fit together: one message that names the place."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from forgetting.artifacts import inside
from forgetting.errors import UserError
from forgetting.evaluation.suite import suite_path
from forgetting.inspection.detection import MEASURES
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
    Repetition,
    Row,
    Runs,
    Stage,
    Stated,
    Study,
    Total,
)
from forgetting.studies.spec_checks import check_study
from forgetting.studies.spec_values import (
    build,
    check_keys,
    decimals,
    items,
    kind,
    listed,
    mapping,
    mean_and_sd,
    number,
    numbered,
    pair,
    seeds,
    text,
)

STAGES = ("fit", "score")
"""Stages that `cost.json` times and a row may show."""

COSTS = ("fit", "evaluate")
"""Stages of a run itself, which a column may show."""

SETTABLE = ("model", "data", "trainer", "seed_everything")
"""Groups of settings that a row may change."""


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

    def groups(value: Any, place: str) -> tuple[Group, ...]:
        # Fields are read in their order: the columns are known to be a list by now.
        row = partial(_row, num_columns=len(content["columns"]), is_inline="config" in content)
        readers = {"rows": numbered(row), "compare": listed(pair)}
        return numbered(lambda group, place: build(Group, group, place, readers))(value, place)

    study = build(Study, content, f"{path}", {
        "columns": listed(_column),
        "groups": groups,
        "suite": partial(_suite, path),
        "experiments": partial(_folder, path),
        "config": partial(mapping, purpose="with model and data"),
        "overlays": listed(partial(_near, path)),
        "repeats": listed(partial(_repeat, path)),
        "seeds": seeds,
        "corpus": _experiment,
        "decimals": decimals,
        "figure": _figure,
        "stated": listed(partial(build, Stated, readers={"value": number})),
        "notes": listed(text),
    }, path=path)  # fmt: skip
    if "experiments" not in content:
        study = replace(study, experiments=_enclosing_experiments(path))
    if study.repeats and "seeds" in content:
        raise UserError(f"{path} has `repeats` and `seeds`: the repetitions are one or the other. Remove one of them.")
    check_study(study)
    return study


# --- columns and rows ------------------------------------------------------------------------------------------------


def _column(content: Any, place: str) -> Column:
    if not isinstance(content, dict):
        return Column(text(content, place))
    kinds = [key for key in ("metric", "cost", "noise") if key in content]
    check_keys(content, {"name"}, {"name", "metric", "cost", "noise", "best", "decimals"}, place)
    name = text(content["name"], f"{place}, name")
    own = decimals(content["decimals"], f"{place}, decimals") if "decimals" in content else None
    if "best" in content and not kinds:
        if content["best"] not in ("least", "most"):
            raise UserError(f"{place}, {name!r}: best is {content['best']!r}; least or most was expected.")
        return Column(name, decimals=own, less=content["best"] == "least")
    if len(kinds) != 1:
        raise UserError(f"{place}, {name!r} has {kinds or 'none'} of metric, cost, noise; exactly one is expected.")
    if "best" in content:
        raise UserError(f"{place}, {name!r}: best is of a column of the suite; of a {kinds[0]} it is known.")
    key = text(content[kinds[0]], f"{place}, {name!r}")
    if kinds == ["cost"] and key not in COSTS:
        raise UserError(f"{place}, {name!r}: cost is {key!r}; one of {', '.join(COSTS)} was expected.")
    is_of_kind = "/" in key and key.partition("/")[0] in MEASURES
    if kinds == ["noise"] and key not in NOISE_MEASURES and not is_of_kind:
        known = ", ".join([*NOISE_MEASURES, *(f"{measure}/<kind>" for measure in MEASURES)])
        raise UserError(f"{place}, {name!r}: noise is {key!r}; one of {known} was expected.")
    return Column(name, kinds[0], key, own)  # type: ignore[arg-type]


_ORIGINS: dict[str, Callable[[dict[str, Any], str], Origin]] = {
    "run": lambda row, place: Runs(_experiment(row["run"], f"{place}, run"), _overrides(row.get("set", {}), place)),
    "base": lambda row, place: BaseModel(None if row["base"] is True else text(row["base"], f"{place}, base")),
    "stage": lambda row, place: _stage(row, place),
    "total": lambda row, place: Total(listed(text)(row["total"], f"{place}, total")),
    "overhead": lambda row, place: Overhead(*pair(row["overhead"], f"{place}, overhead")),
    "source": lambda row, place: CorpusSource(text(row["source"], f"{place}, source")),
}


def _row(content: Any, place: str, num_columns: int, is_inline: bool) -> Row:
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
    return Stage(row["stage"], listed(_experiment)(row["runs"], f"{place}, runs"))


AXES = {"lines": ["x"], "heatmap": ["x", "y"], "differences": []}
"""The axes that each kind of figure has."""


def _figure(content: Any, place: str) -> Figure:
    figure = build(Figure, content, place, {"kind": _kind_of_figure})
    given = [axis for axis in ("x", "y") if getattr(figure, axis) is not None]
    if given != AXES[figure.kind]:
        raise UserError(f"{place}: a heatmap has x and y, lines have x alone, differences neither.")
    return figure


def _kind_of_figure(value: Any, place: str) -> str:
    if value not in AXES:
        raise UserError(f"{place} is {kind(value)}; {', '.join(AXES)} were expected.")
    return value


# --- what a study names: relative to the study where it is there, else to the current folder -------------------------


def _experiment(value: Any, place: str) -> str:
    name = text(value, place)
    try:
        inside(Path(EXPERIMENTS), name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return name


def _near(study: Path, value: Any, place: str) -> Path:
    """A file or folder; the study itself is never meant."""
    name = text(value, place)
    beside = study.parent / name
    return beside if beside.exists() and not beside.samefile(study) else Path(name)


def _suite(study: Path, value: Any, place: str) -> str | None:
    """A suite: a name in `configs/evaluation/`, or the path of a YAML file."""
    if value is None:
        return None
    name = text(value, place)
    if name.endswith((".yaml", ".yml")):
        return _near(study, name, place).as_posix()
    if not suite_path(name).is_file():
        known = ", ".join(sorted(file.stem for file in suite_path(name).parent.glob("*.yaml")))
        raise UserError(f"{place}: there is no suite {name!r}. Known: {known}; or give the path of a YAML file.")
    return name


def _repeat(study: Path, value: Any, place: str) -> Repetition:
    """An overlay that is a repetition, alone or with its suite."""
    content = {"overlay": value} if isinstance(value, str) else value
    check_keys(content, {"overlay"}, {"overlay", "suite"}, place)
    overlay = _near(study, content["overlay"], f"{place}, overlay")
    return Repetition(overlay.stem, None, overlay, _suite(study, content.get("suite"), f"{place}, suite"))


def _folder(study: Path, value: Any, place: str) -> Path:
    folder = _near(study, value, place)
    if not folder.is_dir():
        raise UserError(f"{place}: there is no folder {folder}.")
    return folder


def _enclosing_experiments(study: Path) -> Path:
    """The enclosing folder of experiments, else the study's own."""
    enclosing = [folder for folder in study.parents if folder.name == EXPERIMENTS]
    if not enclosing and EXPERIMENTS in (parts := study.absolute().parent.parts):
        enclosing = [Path(*parts[: len(parts) - parts[::-1].index(EXPERIMENTS)])]
    return enclosing[0] if enclosing else study.parent
