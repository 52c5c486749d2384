"""`python -m forgetting plot`: the curves of runs next to each other, and the score histograms of stores. SVG or PNG.

Everything is read from the folders: `metrics.csv` of a run, the shards of a store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from forgetting.arguments import command_parser, parse
from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.run_folder import read_metrics
from forgetting.studies.figures import save_figure

RUN_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Of Okabe and Ito (2008): told apart by readers who do not see all colors. More runs are colored along a scale."""

POSITIVE_COLOR, NEGATIVE_COLOR, THRESHOLD_COLOR = "#0072B2", "#b5b5b5", "#D55E00"

SIDES = {
    "nll_positive": ("positive tokens", "-"), "nll_negative": ("negative tokens", "--"), "nll": ("all tokens", ":"),
}  # fmt: skip
"""The curves of a panel, each in a line style of its own."""

SMOOTHED = 100
"""Steps from which on a curve is drawn as a moving mean, over a fiftieth of them (5 at least), on its pale values."""


@dataclass(frozen=True)
class Curves:
    """What a run logged.

    Attributes:
        name: In the legend.
        columns: By name the steps (optimizer steps done) and the values, where there is one.
    """

    name: str
    columns: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Histogram:
    """The scores of a store's D_train, in nats per token.

    Attributes:
        name: In the title.
        counts: Response tokens in each bin.
        edges: Of the bins, one more.
        threshold: Above it lie the positive tokens.
        positive_fraction: Their fraction, ρ.
    """

    name: str
    counts: np.ndarray
    edges: np.ndarray
    threshold: float
    positive_fraction: float


def plot_command(arguments: list[str]) -> None:
    """Draw runs and stores.

    Raises:
        UserError: A folder is neither, the output is no picture, or matplotlib is not installed.
    """
    options = parse(_parser(), arguments)
    output = Path(options.output)
    form = output.suffix.removeprefix(".")
    if form not in ("svg", "png"):
        raise UserError(f"--output is {output}; a file that ends in .svg or .png was expected.")
    if not 0 < options.positive_fraction < 1:
        raise UserError(f"--positive_fraction is {options.positive_fraction}; a number between 0 and 1 was expected.")
    folders = [Path(folder) for folder in options.folders]
    kinds = [_kind(folder) for folder in folders]
    runs, stores = ([f for f, kind in zip(folders, kinds, strict=True) if kind == k] for k in ("run", "store"))
    curves = [read_curves(folder, name) for folder, name in zip(runs, short_names(runs), strict=True)]
    histograms = [
        read_histogram(folder, name, options.positive_fraction)
        for folder, name in zip(stores, short_names(stores), strict=True)
    ]
    save_figure(lambda pyplot: draw_panels(pyplot, curves, histograms), output, form)
    print(output)


def _parser() -> ArgumentParser:
    parser = command_parser(
        "plot",
        "Curves of runs (positive, negative and held-out nll, λ, gradient norm), and score histograms of stores.",
        (
            "plot runs/lab/full/seed-100 --output curves.svg",
            "plot runs/lab/reference/seed-100/scores --output a.png",
        ),
    )
    add = parser.add_argument
    add("folders", type=str, nargs="+", help="folders of runs (with metrics.csv) and of score stores (…/scores)")
    add("--output", type=str, required=True, help="file to write, .svg or .png")
    add("--positive_fraction", type=float, default=0.7, help="ρ whose threshold a histogram shows (default: 0.7)")
    return parser


def _kind(folder: Path) -> str:
    manifest = folder / "manifest.json"
    if manifest.is_file() and "content_hash" not in read_json(manifest):  # a corpus has that, and is no store
        return "store"
    if (folder / "metrics.csv").is_file():
        return "run"
    what = "does not exist" if not folder.exists() else "holds neither"
    raise UserError(
        f"{folder} {what}: the folder of a run with its metrics.csv, such as runs/<id>/seed-0, or of a finished score "
        "store with its manifest.json, such as runs/<reference>/seed-0/scores, was expected."
    )


def short_names(folders: list[Path]) -> list[str]:
    """What tells folders apart: their paths without the parts that all begin or end with."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < 2:
        return ["/".join(path[-3:]) for path in parts]
    while len({path[0] for path in parts}) == 1 and all(len(path) > 1 for path in parts):
        parts = [path[1:] for path in parts]
    while len({path[-1] for path in parts}) == 1 and all(len(path) > 1 for path in parts):
        parts = [path[:-1] for path in parts]
    return ["/".join(path) for path in parts]


def read_curves(folder: Path, name: str) -> Curves:
    """The columns of a run's `metrics.csv`.

    A training row is of the model before its step. A held-out row is of the model after its step, but for that of step
    0, which comes before it.

    Raises:
        UserError: No step is logged yet.
    """
    rows = read_metrics(folder / "metrics.csv")
    if not rows:
        raise UserError(f"{folder / 'metrics.csv'} has no row: no step is logged yet. Plot it once the run has begun.")
    columns = {}
    for column in rows[0]:
        points = [(int(row["step"]), float(row[column])) for row in rows if column != "step" and row[column]]
        if points:
            steps, values = np.array(points).T
            if column.startswith("validation/"):
                steps = np.where(steps > 0, steps + 1, 0)
            columns[column] = (steps, values)
    return Curves(name, columns)


def read_histogram(folder: Path, name: str, positive_fraction: float) -> Histogram:
    """The histogram of a store's scores on D_train, and the threshold of its top-ρ fraction.

    Raises:
        UserError: The store is unfinished or damaged.
    """
    from forgetting.method.masks import ScoredSplit
    from forgetting.method.scores import LossReduction, score_histogram
    from forgetting.method.selection import Selection, find_thresholds
    from forgetting.method.store import ScoreStore

    scored = ScoredSplit(ScoreStore.open(folder).split("train"), LossReduction())
    counts, edges = score_histogram(scored.chunks)
    threshold = find_thresholds(scored.chunks, scored.stored.num_tokens, Selection(positive_fraction)).positive
    return Histogram(name, counts, edges, float(threshold.value), positive_fraction)


def draw_panels(pyplot: Any, curves: list[Curves], histograms: list[Histogram]) -> Any:
    """The figure: a panel for each quantity that any run has, and one for each store."""
    panels: list[Callable[[Any], None]] = []
    logged = {column for run in curves for column in run.columns}
    for group, title in (("train", "Training"), ("validation", "Held-out")):
        sides = [side for side in SIDES if f"{group}/{side}" in logged]
        if sides:
            panels.append(lambda axes, g=group, t=title, s=sides: _draw_nll(axes, curves, g, t, s))
    for column, title, unit in (
        ("train/coefficient", "Coefficient of the negative tokens", "λ"),
        ("train/gradient_norm", "Gradient norm", "nats per token / weight"),
    ):
        if column in logged:
            panels.append(lambda axes, c=column, t=title, u=unit: _draw_column(axes, curves, c, t, u))
    panels += [lambda axes, h=histogram: _draw_histogram(axes, h) for histogram in histograms]
    num_columns = min(len(panels), 2)
    num_rows = -(-len(panels) // num_columns)
    legend_height = 0.2 * len(curves) if len(curves) > 3 else 0.0
    size = (4.6 * num_columns, 3 * num_rows + legend_height)
    canvas, grid = pyplot.subplots(num_rows, num_columns, figsize=size, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes)
        axes.grid(axis="y", color="#e4e4e4", lw=0.8)
        axes.set_axisbelow(True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    if curves:
        colors = [_color(i, len(curves)) for i in range(len(curves))]
        handles = [
            pyplot.Line2D([], [], color=color, lw=2, label=run.name) for color, run in zip(colors, curves, strict=True)
        ]
        num_beside = 1 if len(curves) > 3 else len(curves)
        canvas.legend(handles=handles, loc="outside upper left", ncols=num_beside, frameon=False)
    return canvas


def _color(run: int, num_runs: int) -> Any:
    """A color that no other of the runs has."""
    if num_runs <= len(RUN_COLORS):
        return RUN_COLORS[run]
    from matplotlib import colormaps

    return colormaps["turbo"]((run + 0.5) / num_runs)


def _draw_nll(axes: Any, curves: list[Curves], group: str, title: str, sides: list[str]) -> None:
    for i, run in enumerate(curves):
        for side in sides:
            if f"{group}/{side}" in run.columns:
                marker = {"marker": "o", "ms": 3} if group == "validation" else {}
                _line(axes, *run.columns[f"{group}/{side}"], color=_color(i, len(curves)), ls=SIDES[side][1], **marker)
    for side in sides:
        name, style = SIDES[side]
        axes.plot([], [], color="#555555", ls=style, label=name)
    axes.legend(frameon=False, fontsize=8, handlelength=3)
    _label(axes, f"{title} nll", "nats per token")


def _draw_column(axes: Any, curves: list[Curves], column: str, title: str, unit: str) -> None:
    for i, run in enumerate(curves):
        if column in run.columns:
            _line(axes, *run.columns[column], smooth=column != "train/coefficient", color=_color(i, len(curves)))
    _label(axes, title, unit)


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, smooth: bool = True, **style: Any) -> None:
    """A curve; one of many steps as a moving mean on its pale values."""
    width = max(5, len(values) // 50) if smooth and len(values) >= SMOOTHED else 1
    if width > 1:
        axes.plot(steps, values, color=style["color"], lw=0.6, alpha=0.25)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        ends = np.arange(1, len(values) + 1)
        begins = np.maximum(ends - width, 0)  # the first means are over what there is
        values = (sums[ends] - sums[begins]) / (ends - begins)
    axes.plot(steps, values, lw=1.6, **style)


def _label(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(unit)
    axes.margins(x=0.02)


def _draw_histogram(axes: Any, histogram: Histogram) -> None:
    edges, counts = histogram.edges, histogram.counts
    positive = edges[:-1] >= histogram.threshold
    for shown, color, name in ((positive, POSITIVE_COLOR, "positive"), (~positive, NEGATIVE_COLOR, "negative")):
        if shown.any():  # the legend would show bars that are none in another color
            axes.bar(edges[:-1][shown], counts[shown], np.diff(edges)[shown], align="edge", color=color, label=name)
    axes.set_ylim(0, 1.35 * counts.max())  # room for the legend
    axes.axvline(0, color="#000000", lw=1, ls=":", label="zero")
    axes.axvline(
        histogram.threshold, color=THRESHOLD_COLOR, lw=1.6,
        label=f"threshold of the top {100 * histogram.positive_fraction:g} %: {histogram.threshold:.3g}",
    )  # fmt: skip
    axes.legend(fontsize=8, ncols=2, edgecolor="none", framealpha=0.9)  # over the two lines
    axes.set_title(f"Scores: {histogram.name}", loc="left", fontsize=10)
    axes.set_xlabel("loss reduction, nats per token (outermost bins: all beyond)")
    axes.set_ylabel("response tokens")
    axes.ticklabel_format(axis="y", style="plain")
