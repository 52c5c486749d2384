"""Figures: what is drawn, in both formats, with and without runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_studies_tables import write_results

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.studies.collect import collect
from forgetting.studies.figures import draw
from forgetting.studies.plan import Plan
from forgetting.studies.results import RunFolders
from forgetting.studies.spec_file import load_study

TABLES = Path(__file__).parent.parent / "experiments" / "tables"
FIGURES = ["figure1a", "figure1b", "table9"]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_figure_without_runs_is_drawn_from_the_paper_s_values(tmp_path: Path, name: str, form: str) -> None:
    file = tmp_path / f"figure.{form}"
    draw(collect(Plan(load_study(TABLES / f"{name}.yaml"), RunFolders(tmp_path))), file, form)
    assert file.stat().st_size > 5000


def test_no_group_is_left_out_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = yaml.safe_load((TABLES / "figure1a.yaml").read_text())
    names = [f"Model {number}" for number in range(8)]  # more than there are colors
    groups = [study["groups"][0] | {"name": name} for name in names]
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(study | {"groups": groups, "experiments": str(TABLES.parent)}))
    labels: list[str] = []

    def note(make: Callable[[Any], Any], path: Path, form: str) -> None:
        from matplotlib import pyplot

        (axes,) = make(pyplot).axes
        labels.extend(axes.get_legend_handles_labels()[1])
        pyplot.close()

    monkeypatch.setattr("forgetting.studies.figures.save_figure", note)
    draw(collect(Plan(load_study(tmp_path / "many.yaml"), RunFolders(tmp_path))), tmp_path / "many.svg", "svg")
    assert labels == [f"{name}, the paper's" for name in names]


def test_a_figure_is_the_same_every_time(tmp_path: Path) -> None:
    table = collect(Plan(load_study(TABLES / "figure1a.yaml"), RunFolders(tmp_path)))
    for name in ("one", "two"):
        draw(table, tmp_path / f"{name}.svg", "svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_runs_add_to_a_figure(tmp_path: Path) -> None:
    plan = Plan(load_study(TABLES / "figure1b.yaml"), RunFolders(tmp_path))
    draw(collect(plan), tmp_path / "before.svg", "svg")
    for rate in ("0.05", "0.10", "0.15"):
        write_results(tmp_path / f"figure1b/llama-3.2-3b/forget-{rate}/seed-0", [1, 0], [1, 0], suite="main")
    draw(collect(plan, intervals=False), tmp_path / "after.svg", "svg")
    marks = [len(re.findall("<use ", (tmp_path / f"{name}.svg").read_text())) for name in ("before", "after")]
    assert marks[1] > marks[0]


def test_differences_are_drawn_with_their_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point for each pair of which both rows are there, and an interval from two seeds on; by the command itself."""
    study = yaml.safe_load((TABLES / "table3.yaml").read_text()) | {"figure": {"kind": "differences", "column": "AVG"}}
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(study | {"experiments": str(TABLES.parent)}))
    monkeypatch.chdir(tmp_path)

    def points_and_intervals() -> tuple[int, int]:
        drawn: list[int] = []

        def count(make: Callable[[Any], Any], path: Path, form: str) -> None:
            from matplotlib import pyplot

            (axes,) = make(pyplot).axes
            drawn.extend([sum(len(line.get_xdata()) == 1 for line in axes.lines), len(axes.lines)])
            pyplot.close()

        monkeypatch.setattr("forgetting.studies.figures.save_figure", count)
        main(["table", "drawn.yaml", "--output", "drawn.svg"])
        points, lines = drawn
        return points, lines - points - 1  # the line at 0

    assert points_and_intervals() == (0, 0)
    for seed in (0, 1):
        for method in ("forgetting-token", "ignoring-token"):
            folder = Path(f"runs/table3/llama-3.2-1b/{method}/seed-{seed}")
            write_results(folder, [1, method == "forgetting-token", 0], [1, 0], suite="main")
    assert points_and_intervals() == (1, 1)


def test_differences_of_no_pairs_are_refused(tmp_path: Path) -> None:
    study = yaml.safe_load((TABLES / "figure1a.yaml").read_text())
    for figure, message in (
        ({"kind": "differences", "column": "AVG"}, "differences are those of `compare`"),
        ({"kind": "differences", "column": "AVG", "x": "ρ"}, "differences neither"),
        ({"kind": "lines", "column": "AVG"}, "lines have x alone"),
        ({"kind": "pie", "column": "AVG"}, "lines, heatmap, differences were expected"),
    ):
        (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(study | {"figure": figure}))
        with pytest.raises(UserError, match=message):
            load_study(tmp_path / "drawn.yaml")


def test_a_table_without_a_figure_says_so(tmp_path: Path) -> None:
    table = collect(Plan(load_study(TABLES / "table3.yaml"), RunFolders(tmp_path)))
    with pytest.raises(UserError, match="Table 3 is no figure"):
        draw(table, tmp_path / "a.svg", "svg")
