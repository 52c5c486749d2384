"""Plots of runs and stores: what is read, what is drawn, and what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Patch

from forgetting.artifacts import write_manifest
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.method.scores import score_histogram
from forgetting.method.store import close_store, shard_ranges, write_shard
from forgetting.studies.figures import save_figure
from forgetting.studies.plot import Curves, Histogram, draw_panels, read_curves, read_histogram, short_names

HEAD = (
    "step,validation/nll,validation/nll_positive,train/loss,train/nll_positive,train/nll_negative,train/gradient_norm"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 4 steps with a validation before the first and after the third one."""
    folder = tmp_path / "runs/a/seed-0"
    folder.mkdir(parents=True)
    rows = ["0,5,6,3,3.5,2,1", "1,,,2,2.5,3,1", "2,4,3,2,2,3,1", "3,,,1,1,4,1"]
    (folder / "metrics.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 100 tokens whose scores are 0.0, 0.1, …, 9.9 nats."""
    folder = tmp_path / "reference/seed-0/scores"
    (folder / "train").mkdir(parents=True)
    (shard,) = shard_ranges("train", 10, 10)
    reference = np.zeros(100, np.float32)
    base = np.arange(100, dtype=np.float32) / 10
    write_shard(folder, shard, {}, np.full(10, 10), {"nll_base": base, "nll_reference": reference})
    close_store(folder, {}, [shard], {})
    return folder


def test_training_rows_are_before_their_step_and_held_out_rows_after_it_but_for_the_first(run: Path) -> None:
    columns = read_curves(run, "a").columns
    assert [values.tolist() for values in columns["train/loss"]] == [[0, 1, 2, 3], [3, 2, 2, 1]]
    assert [values.tolist() for values in columns["validation/nll"]] == [[0, 3], [5, 4]]
    assert "validation/nll_negative" not in columns


def test_a_histogram_counts_every_token_and_shows_the_threshold_of_the_top_fraction(store: Path) -> None:
    histogram = read_histogram(store, "x", 0.7)
    assert histogram.counts.sum() == 100
    assert histogram.threshold == pytest.approx(3.0)  # the lowest of the 70 highest


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_histogram_is_numpy_s_but_for_outliers_which_fall_into_the_last_bins(pieces: int) -> None:
    scores = np.random.default_rng(0).normal(1, 2, 1000).astype(np.float32)
    counts, edges = score_histogram(lambda: np.array_split(scores, pieces), 20)
    expected, expected_edges = np.histogram(scores, 20)
    np.testing.assert_allclose(edges, expected_edges, rtol=1e-6)
    np.testing.assert_array_equal(counts, expected)
    with_outlier = np.append(scores, np.float32(1e6))
    far, _ = score_histogram(lambda: np.array_split(with_outlier, pieces), 20)
    assert far.sum() == 1001
    assert far[-1] == 1
    same, edges = score_histogram(lambda: [np.ones(5, np.float32)], 4)
    assert same.sum() == 5
    assert edges[0] < 1 < edges[-1]


def test_folders_go_by_what_tells_them_apart() -> None:
    assert short_names([Path("/r/t/a/seed-0"), Path("/r/t/b/seed-0")]) == ["a", "b"]
    assert short_names([Path("/r/t/a/seed-0"), Path("/r/t/a/seed-1")]) == ["seed-0", "seed-1"]
    assert short_names([Path("/r/a"), Path("/r/a/b")]) == ["a", "a/b"]
    assert short_names([Path("/r/t/a/seed-0")]) == ["t/a/seed-0"]
    assert short_names([]) == []


@pytest.mark.parametrize("form", ["svg", "png"])
def test_runs_and_stores_are_drawn_side_by_side(run: Path, store: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / f"plot.{form}"
    main(["plot", str(run), str(store), "--output", str(output)])
    assert output.stat().st_size > 5000
    if form == "svg":  # a panel for each: both nll, the norm, the scores; none for λ, which the run has not
        assert len(re.findall(r'<g id="axes_\d+">', output.read_text())) == 4
        before = output.read_bytes()
        main(["plot", str(run), str(store), "--output", str(output)])
        assert output.read_bytes() == before


def drawn(curves: list[Curves], histograms: list[Histogram], folder: Path) -> Any:
    """The figure of runs and stores."""
    figures: list[Any] = []

    def make(pyplot: Any) -> Any:
        figures.append(draw_panels(pyplot, curves, histograms))
        return figures[0]

    save_figure(make, folder / "figure.svg", "svg")
    return figures[0]


@pytest.mark.parametrize("number", [2, 7, 8, 20])
def test_every_run_has_a_color_of_its_own(number: int, tmp_path: Path) -> None:
    column = (np.arange(2.0), np.arange(2.0))
    columns = {"train/nll_positive": column, "train/gradient_norm": column}
    figure = drawn([Curves(str(i), columns) for i in range(number)], [], tmp_path)
    (legend,) = figure.legends
    colors = [to_hex(line.get_color()) for line in legend.get_lines()]
    assert len(set(colors)) == number
    for axes in figure.axes:  # and its curves have that color
        assert [to_hex(line.get_color()) for line in axes.get_lines()[:number]] == colors


@pytest.mark.parametrize(("threshold", "names"), [
    (-10.0, ["positive"]), (0.5, ["positive", "negative"]), (10.0, ["negative"]),
])  # fmt: skip
def test_a_legend_names_the_bars_that_there_are_in_their_color(
    threshold: float, names: list[str], tmp_path: Path
) -> None:
    histogram = Histogram("x", np.array([1, 2]), np.array([0.0, 1.0, 2.0]), threshold, 0.7)
    legend = drawn([], [histogram], tmp_path).axes[0].get_legend()
    bars = {
        text.get_text(): to_hex(handle.get_facecolor())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True) if isinstance(handle, Patch)
    }  # fmt: skip
    assert bars == {name: {"positive": "#0072b2", "negative": "#b5b5b5"}[name] for name in names}


def test_a_corpus_is_no_store_and_nobody_is_told_to_remove_its_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", {"format": 1, "kind": "corpus", "content_hash": "x", "identity": {}})
    with pytest.raises(UserError, match=r"holds neither: the folder of a run") as error:
        main(["plot", str(tmp_path), "--output", str(tmp_path / "plot.png")])
    assert "Remove" not in str(error.value)


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "plot.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/metrics.csv").write_text(HEAD + "\n")
    cases = [
        (["none"], r"none does not exist: the folder of a run with its metrics.csv"),
        ([str(tmp_path / "empty")], r"holds neither: .* score store with its manifest.json"),
        ([str(tmp_path / "begun")], r"has no row: no step is logged yet"),
        ([str(run), "--positive_fraction", "1.5"], r"is 1.5; a number between 0 and 1"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            main(["plot", *arguments, "--output", str(output)])
    with pytest.raises(UserError, match=r"a file that ends in .svg or .png was expected"):
        main(["plot", str(run), "--output", str(tmp_path / "plot.pdf")])
    assert not output.exists()
    output.mkdir()  # the message names it, and not the temporary file that was to become it
    with pytest.raises(UserError, match=rf"^{re.escape(str(output))}: Is a directory; it is a folder where a file was"):
        main(["plot", str(run), "--output", str(output)])
