"""A table drawn: lines over a parameter (Figures 1a and 1b), a heat map over two (Table 9), or differences.

SVG or PNG.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgetting.artifacts import complete_or_absent
from forgetting.errors import UserError
from forgetting.studies.spec import AVERAGE, Figure, Value
from forgetting.studies.table import Line, Table

LINEAR = 5.0
"""Up to where the axis of differences is linear, in points."""
TICKS = (-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50)
COLORS = ("#2f6f9f", "#c8553d", "#5b8c5a", "#7d5ba6", "#a67c1a", "#555555")
"""Of groups; with more than six they begin again."""


def draw(table: Table, path: Path, form: str) -> None:
    """Draw a table whose specification says how.

    Args:
        table: With or without results; the paper's values are drawn where it gives them.
        path: File to write.
        form: `svg` or `png`.

    Raises:
        UserError: The table has no figure, or matplotlib is not installed.
    """
    figure = table.study.figure
    if figure is None:
        raise UserError(
            f"{table.study.title} is no figure: its specification has no `figure`. "
            "Use --format markdown, latex, csv or html."
        )
    chosen = {"lines": _lines, "heatmap": _heatmap, "differences": _differences}[figure.kind]
    save_figure(lambda pyplot: chosen(table, figure, pyplot), path, form)


def save_figure(make: Callable[[Any], Any], path: Path, form: str) -> None:
    """Write a figure in the project's style, the same bytes every time.

    Args:
        make: Draws it, given matplotlib's pyplot, and returns it.
        path: File to write.
        form: `svg` or `png`.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError("Figures need matplotlib: pip install 'forgetting[experiments]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: dict[Any, Any] = {
        "svg.hashsalt": "forgetting", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with pyplot.rc_context(settings):
        canvas = make(pyplot)
        with complete_or_absent(path) as temporary:
            metadata = {"Date": None} if form == "svg" else {}
            canvas.savefig(temporary, format=form, dpi=160, metadata=metadata)
        pyplot.close(canvas)


def _lines(table: Table, figure: Figure, pyplot: Any) -> Any:
    canvas, axes = pyplot.subplots(figsize=(5, 3.4))
    column, x_axis = table.study.column_names.index(figure.column), figure.x
    assert x_axis is not None, "lines have an x"
    for number, section in enumerate(table.sections):
        color = COLORS[number % len(COLORS)]
        lines = sorted(section.lines, key=lambda line: line.row.at[x_axis])
        ours = [(line.row.at[x_axis], line.ours[column]) for line in lines]
        paper = [(line.row.at[x_axis], line.row.paper[column]) for line in lines]
        own = {"marker": "o", "ms": 4, "lw": 1.5, "label": section.name}
        of_paper = {"marker": "D", "ms": 6, "mfc": "white", "ls": "none", "label": f"{section.name}, the paper's"}
        for points, style in ((ours, own), (paper, of_paper)):
            drawn = [(x, value.mean, value.sd or 0) for x, value in points if value is not None]
            if drawn:
                axes.errorbar(*zip(*drawn, strict=True), color=color, capsize=2.5, **style)
    axes.set_xlabel(x_axis)
    axes.set_ylabel(_axis_name(table, figure))
    ticks = sorted({line.row.at[x_axis] for section in table.sections for line in section.lines})
    axes.set_xticks(ticks)
    margin = 0.04 * (ticks[-1] - ticks[0]) or 1.0
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    axes.grid(axis="y", color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_title(table.study.title, loc="left", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return canvas


def _differences(table: Table, figure: Figure, pyplot: Any) -> Any:
    """A line for each pair, from the first down: its mean difference and interval."""
    column = table.study.column_names.index(figure.column)
    pairs = [(pair, number) for number, section in enumerate(table.sections) for pair in section.pairs]
    rows = [line.row.name for section in table.sections for line in section.lines]
    # A comparison of a row that several groups have is told apart by its group.
    labels = [
        f"{pair.first} − {pair.second}" + (f" ({table.sections[number].name})" if rows.count(pair.first) > 1 else "")
        for pair, number in pairs
    ]
    canvas, axes = pyplot.subplots(figsize=(7.5, 1.1 + 0.21 * len(pairs)))
    for place, (pair, section) in enumerate(pairs):
        difference, color = pair.differences[column], COLORS[section % len(COLORS)]
        if difference is None:
            continue
        if difference.low is not None:
            axes.plot([difference.low, difference.high], [place, place], color=color, lw=1.5)
        axes.plot([difference.difference], [place], "o", ms=4, color=color)
    axes.axvline(0, color="#888888", lw=0.8)
    low, high = axes.get_xlim()
    if max(-low, high) > 2 * LINEAR:
        # Linear where most differences lie, logarithmic beyond: one that is far off must not squeeze the others.
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1)
        axes.set_xticks([tick for tick in TICKS if low <= tick <= high], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_yticks(range(len(pairs)), labels, fontsize=7.5)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel(f"difference of {figure.column}, with its 95 % interval")
    axes.grid(axis="x", color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_title(table.study.title, loc="left", fontsize=10)
    return canvas


def _heatmap(table: Table, figure: Figure, pyplot: Any) -> Any:
    lines = [line for section in table.sections for line in section.lines]
    column = table.study.column_names.index(figure.column)
    panels = [("ours", {_place(line, figure): line.ours[column] for line in lines})]
    paper = {_place(line, figure): line.row.paper[column] for line in lines}
    if any(paper.values()):
        panels.append(("the paper's", paper))
    horizontal = sorted({place[0] for place in paper})
    vertical = sorted({place[1] for place in paper})
    canvas, all_axes = pyplot.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.4), squeeze=False)
    for axes, (name, values) in zip(all_axes[0], panels, strict=True):
        _panel(axes, name, [[values.get((x, y)) for x in horizontal] for y in vertical])
        axes.set_xticks(range(len(horizontal)), [f"{x:g}" for x in horizontal])
        axes.set_yticks(range(len(vertical)), [f"{y:g}" for y in vertical])
        axes.set_xlabel(figure.x)
        axes.set_ylabel(figure.y)
    canvas.suptitle(f"{table.study.title}: {_axis_name(table, figure)}", x=0.02, ha="left", fontsize=10)
    return canvas


def _panel(axes: Any, name: str, grid: list[list[Value | None]]) -> None:
    """One heat map on its own color scale, since levels of two machines differ more than cells do."""
    means = [[float("nan") if value is None else value.mean for value in row] for row in grid]
    present = [value for row in means for value in row if value == value]
    low, high = (min(present), max(present)) if present else (0.0, 1.0)
    axes.imshow(means, cmap="viridis", vmin=low, vmax=high + (high == low), origin="lower", aspect="auto")
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            text = "—" if value is None else f"{value.mean:.2f}" + ("" if value.sd is None else f"\n± {value.sd:.2f}")
            dark = value is not None and value.mean < low + 0.6 * (high - low)
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_title(name, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def _place(line: Line, figure: Figure) -> tuple[float, float]:
    assert figure.x is not None, "a heat map has an x"
    assert figure.y is not None, "a heat map has a y"
    return line.row.at[figure.x], line.row.at[figure.y]


def _axis_name(table: Table, figure: Figure) -> str:
    if table.study.columns[table.study.column_names.index(figure.column)].kind != "suite":
        return figure.column
    return "average over the benchmarks, %" if figure.column == AVERAGE else f"{figure.column}, %"
