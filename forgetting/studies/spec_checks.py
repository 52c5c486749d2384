"""Refuses a study whose parts do not fit together: one message that names the place."""

from collections import Counter
from collections.abc import Iterable

from forgetting.errors import UserError
from forgetting.studies.spec import INLINE, BaseModel, CorpusSource, Overhead, Runs, Stage, Study, Total


def check_study(study: Study) -> None:
    """Refuse what does not fit together.

    Raises:
        UserError: A name is there twice or refers to nothing, a row lacks what its numbers come from, or the figure
            cannot be drawn.
    """
    _check_columns_and_names(study)
    _check_references(study)
    _check_origins(study)
    _check_figure(study)


def _check_columns_and_names(study: Study) -> None:
    for name, parts in (("columns", study.columns), ("groups", study.groups)):
        if not parts:
            raise UserError(f"{study.path} has no {name}.")
    for group in study.groups:
        if not group.rows:
            raise UserError(f"{study.path}, group {group.name!r} has no rows.")
        _refuse_twice([row.name for row in group.rows], f"{study.path}, group {group.name!r}: the row")
    _refuse_twice([group.name for group in study.groups], f"{study.path}: the group")
    _refuse_twice(study.column_names, f"{study.path}: the column")
    _refuse_twice([str(repeat.overlay) for repeat in study.repeats], f"{study.path}: the repetition")


def _refuse_twice(names: Iterable[str], what: str) -> None:
    if twice := [(name, times) for name, times in Counter(names).items() if times > 1]:
        name, times = twice[0]
        raise UserError(f"{what} {name!r} is there {times} times: what names it would be ambiguous.")


def _check_references(study: Study) -> None:
    """Names of rows, groups and columns that other parts of the study use must exist."""
    names = {(group.name, row.name) for group, row in study.rows()}
    used = {(stated.group, row) for stated in study.stated for row in (stated.row, stated.over) if row is not None}
    used |= {(group.name, row) for group in study.groups for pair in group.compare for row in pair}
    if missing := used - names:
        raise UserError(f"{study.path} refers to rows that it does not have: {sorted(missing)}.")
    shown = [("stated", stated.column) for stated in study.stated]
    shown += [("figure", study.figure.column)] if study.figure else []
    for place, column in shown:
        if column not in study.column_names:
            raise UserError(
                f"{study.path}, {place}: there is no column {column!r}; there are {', '.join(study.column_names)}."
            )
    compared = [group.row(name) for group in study.groups for pair in group.compare for name in pair]
    if unfit := [row.name for row in compared if not isinstance(row.origin, (Runs, BaseModel))]:
        raise UserError(f"{study.path} compares {unfit[0]!r}: only rows with a `run` or a `base` can be compared.")
    times, above = Counter(row.name for _, row in study.rows()), set[str]()
    for _, row in study.rows():
        match row.origin:
            case Total(parts):
                pass
            case Overhead(first, over):
                parts = (first, over)
            case _:
                parts = ()
        for part in parts:
            if part not in above or times[part] > 1:
                raise UserError(
                    f"{study.path}, row {row.name!r} refers to the row {part!r}; exactly one of that name, above it, "
                    "is expected."
                )
        above.add(row.name)


def _check_origins(study: Study) -> None:
    """Rows need what their numbers come from."""
    origins = [row.origin for _, row in study.rows()]
    has_suite = study.suite is not None or (study.repeats and all(repeat.suite for repeat in study.repeats))
    shows_suite = any(column.kind == "suite" for column in study.columns)
    for _, row in study.rows():
        place, origin = f"{study.path}, row {row.name!r}", row.origin
        if isinstance(origin, (Runs, BaseModel)) and shows_suite and not has_suite:
            raise UserError(f"{place} shows results of a benchmark: give `suite`, the name of the suite.")
        if isinstance(origin, Runs) and study.config is not None and origin.experiment != INLINE:
            raise UserError(f"{place}: the rows of a study with `config` are runs of it. Leave `run` out.")
        if isinstance(origin, BaseModel) and origin.target is None and not any(isinstance(o, Runs) for o in origins):
            raise UserError(f"{place}: `base: true` is the base model of the study's runs, and it has none.")
        if isinstance(origin, Stage) and len(origin.experiments) != len(study.columns):
            raise UserError(f"{place} needs one run per column ({len(study.columns)}).")
        if isinstance(origin, CorpusSource) and study.corpus is None:
            raise UserError(f"{place} counts a corpus: give `corpus`, an experiment that uses it.")
        if isinstance(origin, CorpusSource) and len(study.columns) != 4:
            raise UserError(f"{place} counts a corpus: four columns are expected, number and percent of two splits.")


def _check_figure(study: Study) -> None:
    figure = study.figure
    if figure is None:
        return
    axes = [axis for axis in (figure.x, figure.y) if axis is not None]
    for _, row in study.rows():
        if missing := [axis for axis in axes if axis not in row.at]:
            raise UserError(f"{study.path}, row {row.name!r} has no {missing[0]!r} in `at`, where the figure draws it.")
    places = [tuple(row.at[axis] for axis in axes) for _, row in study.rows()]
    if figure.kind == "heatmap" and len(set(places)) < len(places):
        raise UserError(f"{study.path}, figure: two rows lie in one cell of the heatmap.")
    if figure.kind == "differences" and not any(group.compare for group in study.groups):
        raise UserError(f"{study.path}, figure: differences are those of `compare`, which no group has.")
