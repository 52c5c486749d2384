import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.artifacts import write_json
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.evaluation.command import compare_command
from forgetting.evaluation.compare import compare
from forgetting.evaluation.finished import write_task
from forgetting.evaluation.naming import base_folder, results_name, task_path


def write_results(
    folder: Path, scores: dict[str, Any], columns: dict[str, list[str]] | None = None, suite: str = "main"
) -> Path:
    """A results file and its tasks; `scores` are those of each task's documents, None for one that failed."""
    tasks = {}
    for task, values in scores.items():
        entry = {"metric": "acc", "identity": f"{task}-{suite}".ljust(64, "0")}
        if values is None:
            tasks[task] = {**entry, "status": "failed", "metrics": {}}
            continue
        numbers = [value if isinstance(value, list) else float(value) for value in values]
        mean = float(np.mean([number for number in numbers if not isinstance(number, list)] or 0))
        tasks[task] = {**entry, "status": "ok", "metrics": {"acc": mean}}
        records = [{"document": i, "hash": f"{task}{i}", "metrics": {"acc": v}} for i, v in enumerate(numbers)]
        write_task(task_path(folder, task, entry["identity"]), tasks[task], records, whole=False)
    named = {name: {"tasks": members} for name, members in (columns or {task: [task] for task in scores}).items()}
    content = {"format": 1, "suite": suite, "protocol": "corrected", "tasks": tasks, "columns": named}
    write_json(folder / results_name(suite, "corrected"), {**content, "target": {"name": str(folder)}})
    return folder


def test_the_interval_is_that_of_the_paired_differences(tmp_path: Path) -> None:
    """Against the normal approximation of the mean of paired differences; unpaired, it would be far wider."""
    generator = np.random.default_rng(0)
    easy = generator.random(2000) < 0.5
    better = easy | (generator.random(2000) < 0.04)
    a, b = write_results(tmp_path / "a", {"t": better}), write_results(tmp_path / "b", {"t": easy})
    (one,), (column, average), _ = compare(a, b)
    differences = 100 * (better.astype(float) - easy.astype(float))
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert one.difference == pytest.approx(differences.mean())
    assert (one.low, one.high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.1)
    assert half < 0.6
    assert (column.difference, average.difference) == (one.difference, one.difference)
    assert (one.documents, one.seeds) == (2000, 1)


def test_the_same_seed_gives_the_same_interval_and_swapping_the_sides_its_mirror(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    a = write_results(tmp_path / "a", {"t": generator.random(50) < 0.7, "u": generator.random(80) < 0.4})
    b = write_results(tmp_path / "b", {"t": generator.random(50) < 0.5, "u": generator.random(80) < 0.4})
    assert compare(a, b) == compare(a, b)
    assert compare(a, b)[1][-1].low != compare(a, b, seed=1)[1][-1].low
    for there, back in zip(compare(a, b)[1], compare(b, a)[1], strict=True):
        assert there.difference == pytest.approx(-back.difference)
        # Of right-or-wrong answers, the added ones are drawn anew.
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1)


def test_a_run_equals_itself(tmp_path: Path) -> None:
    """Other scores leave no doubt; of three right-or-wrong answers, the next may well differ."""
    a = write_results(tmp_path / "a", {"t": [0.3, 0.5, 1], "u": [1, 0, 1]})
    (one, binary), *_ = compare(a, a)
    assert (one.difference, one.low, one.high) == (0, 0, 0)
    assert binary.difference == 0
    assert binary.low < 0 < binary.high


def test_the_average_is_over_columns_and_a_column_over_its_tasks(tmp_path: Path) -> None:
    columns = {"T": ["t"], "U": ["u", "v"]}
    a = write_results(tmp_path / "a", {"t": [1, 1], "u": [1, 0], "v": [1, 1, 1]}, columns)
    b = write_results(tmp_path / "b", {"t": [0, 0], "u": [1, 0], "v": [0, 0, 0]}, columns)
    _, (first, second, average), _ = compare(a, b)
    assert [first.difference, second.difference, average.difference] == [100, 50, 75]


def test_seeds_are_paired_by_name_and_their_spread_widens_the_interval(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    base = generator.random(400) < 0.5
    for seed, gain in enumerate([0.0, 0.1, 0.2]):
        write_results(tmp_path / f"a/seed-{seed}", {"t": base | (generator.random(400) < gain)})
        write_results(tmp_path / f"b/seed-{seed}", {"t": base})
    (one,), *_ = compare(tmp_path / "a", tmp_path / "b")
    (middle,), *_ = compare(tmp_path / "a/seed-1", tmp_path / "b/seed-1")
    assert (one.seeds, middle.seeds) == (3, 1)
    assert one.high - one.low > 1.5 * (middle.high - middle.low)


def test_one_seed_is_compared_with_its_like_and_a_base_with_every_seed(tmp_path: Path) -> None:
    """A trained run is a draw: as the partner of all seeds it would count as a number without noise."""
    for seed in range(3):
        write_results(tmp_path / f"a/seed-{seed}", {"t": [1, 1, seed % 2, 0]})
    alone = write_results(tmp_path / "b/seed-1", {"t": [1, 0, 0, 0]})
    base = write_results(tmp_path / "base", {"t": [1, 0, 0, 0]})
    for one in (alone, tmp_path / "b"):
        (row,), _, notes = compare(tmp_path / "a", one)
        assert (row.seeds, row.difference) == (1, 50)
        assert "Without a partner, and left out: seed-0 of" in notes[-1]
    (row,), _, notes = compare(tmp_path / "a", base)
    assert (row.seeds, round(row.difference, 2), notes) == (3, 33.33, [])
    (row,), *_ = compare(tmp_path / "a/seed-0", alone)  # two runs that were named are compared, whatever their seeds
    assert (row.seeds, row.difference) == (1, 25)
    with pytest.raises(UserError, match="no seed in common"):
        compare(tmp_path / "a", write_results(tmp_path / "c/seed-7", {"t": [1, 0, 0, 0]}))


def test_a_failed_task_is_left_out_and_with_it_the_average(tmp_path: Path) -> None:
    a = write_results(tmp_path / "a", {"t": [1, 0], "u": None})
    b = write_results(tmp_path / "b", {"t": [1, 1], "u": [1]})
    tasks, columns, _ = compare(a, b)
    assert [one.name for one in tasks] == ["t"]
    assert [one.name for one in columns] == ["column t"]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = write_results(tmp_path / "a", {"t": [1, 0, 1]})
    with pytest.raises(UserError, match=r"no folder .*gone\. Give a run folder"):
        compare(a, tmp_path / "gone")
    with pytest.raises(UserError, match=r"evaluated t on different documents \(3 and 2, 2 of them the same\)"):
        compare(a, write_results(tmp_path / "b", {"t": [1, 0]}))
    with pytest.raises(UserError, match="no finished task in common"):
        compare(a, write_results(tmp_path / "c", {"u": [1]}))
    for name in ("d/seed-0", "d/seed-1", "e/seed-2", "e/seed-3"):
        write_results(tmp_path / name, {"t": [1]})
    with pytest.raises(UserError, match="no seed in common"):
        compare(tmp_path / "d", tmp_path / "e")


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_results(tmp_path / "a", {"t": [1, 1, 1, 0]})
    b = write_results(tmp_path / "b", {"t": [1, 0, 0, 0]})
    compare_command([str(a), str(b), "--output", str(tmp_path / "difference.json"), "--resamples", "200"])
    assert "+50.00" in capsys.readouterr().out
    content = json.loads((tmp_path / "difference.json").read_text())
    assert content["columns"][-1]["name"] == "average"
    assert content["tasks"][0]["difference"] == 50


def test_no_number_of_several_seeds_is_cut_off_at_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # also the width where the output goes to a file
    generator = np.random.default_rng(3)
    for side, seed in product("ab", range(3)):
        tasks = {name: generator.random(40) < 0.5 for name in ("one", "arc_challenge_of_a_longer_name")}
        write_results(tmp_path / side / f"seed-{seed}", tasks)
    compare_command([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "c.json")])
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    one = json.loads((tmp_path / "c.json").read_text())["tasks"][0]
    intervals = ((one["low"], one["high"]), one["bootstrap"], one["over_seeds"])
    ends = [f"{low:+.2f} … {high:+.2f}" for low, high in intervals]
    found = [cells[1:-1] for cells in rows if "one" in cells]
    assert found[0] == ["one", f"{one['a']:.2f}", f"{one['b']:.2f}", f"{one['difference']:+.2f}", ends[0], "40"]
    assert found[1] == ["one", *ends[1:]]


@pytest.mark.slow
def test_the_interval_covers_the_truth_with_three_seeds_that_differ_strongly(tmp_path: Path) -> None:
    """500 experiments without any true difference: 95% intervals that hold in at least 93%; the bootstrap's do not."""
    generator = np.random.default_rng(0)
    covered, by_bootstrap, num_trials = 0, 0, 500
    zeros = np.zeros(30)
    for seed in range(3):
        write_results(tmp_path / f"b/seed-{seed}", {"t": zeros})
    for _ in range(num_trials):
        for seed in range(3):
            scores = generator.normal(0, 0.1) + generator.normal(0, 0.05, size=30)
            write_results(tmp_path / f"a/seed-{seed}", {"t": scores})
        (one,), *_ = compare(tmp_path / "a", tmp_path / "b", resamples=400)
        covered += one.low <= 0 <= one.high
        by_bootstrap += one.bootstrap[0] <= 0 <= one.bootstrap[1]
    assert covered / num_trials >= 0.93
    assert by_bootstrap / num_trials < 0.85


def test_the_interval_spans_the_bootstraps_and_students_of_the_seeds(tmp_path: Path) -> None:
    for seed, value in enumerate([0.1, 0.2, 0.6]):
        write_results(tmp_path / f"a/seed-{seed}", {"t": [value] * 5})
        write_results(tmp_path / f"b/seed-{seed}", {"t": [0] * 5})
    (one,), *_ = compare(tmp_path / "a", tmp_path / "b")
    half = 4.302653 * np.std([10, 20, 60], ddof=1) / np.sqrt(3)  # Student's t with 2 degrees of freedom
    assert one.over_seeds == pytest.approx((30 - half, 30 + half))
    assert one.bootstrap == pytest.approx((10, 60))
    assert (one.low, one.high) == pytest.approx((30 - half, 30 + half))
    (alone,), *_ = compare(tmp_path / "a/seed-0", tmp_path / "b/seed-0")
    assert (alone.over_seeds, alone.low, alone.high) == (None, *alone.bootstrap)


def test_scores_that_are_no_numbers_cannot_be_compared(tmp_path: Path) -> None:
    a = write_results(tmp_path / "a", {"t": [[1, 0], [1]]})
    with pytest.raises(UserError, match=r"acc of t in .* is no mean over documents"):
        compare(a, a)


def test_of_several_suites_one_is_asked_for(tmp_path: Path) -> None:
    for suite, value in (("main", 1), ("architectures", 0)):
        write_results(tmp_path / "a", {"t": [value]}, suite=suite)
        write_results(tmp_path / "b", {"t": [0]}, suite=suite)
    with pytest.raises(UserError, match="results of several suites: give --suite architectures or main"):
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert compare(tmp_path / "a", tmp_path / "b", suite="main")[0][0].difference == 100
    assert compare(tmp_path / "a", tmp_path / "b", suite="architectures")[0][0].difference == 0
    only = write_results(tmp_path / "only", {"t": [1]}, suite="architectures")
    assert compare(tmp_path / "a", only)[0][0].difference == -100
    with pytest.raises(UserError, match=r"no results.main.json of .*only: looked in .*only"):
        compare(tmp_path / "a", only, suite="main")
    other = write_results(tmp_path / "other", {"t": [1]}, suite="mine")
    with pytest.raises(UserError, match="evaluated on different suites: architectures, main and mine"):
        compare(tmp_path / "a", other)


@pytest.mark.parametrize(("options", "message"), [
    (["--confidence", "2"], "confidence is 2.0; it must be between 0 and 1"),
    (["--resamples", "0"], "0 resamples; at least 1"), (["--seed", "-1"], "seed is -1; it must be at least 0"),
])  # fmt: skip
def test_numbers_out_of_range_are_said(tmp_path: Path, options: list[str], message: str) -> None:
    a = write_results(tmp_path / "a", {"t": [1, 0]})
    with pytest.raises(UserError, match=message):
        main(["compare", str(a), str(a), *options])


def test_a_folder_beside_the_seeds_is_no_seed(tmp_path: Path) -> None:
    for name in ("seed-0", "seed-1", "seed-0.old", "seed-0-old", "seed-x"):
        write_results(tmp_path / f"a/{name}", {"t": [1, 0]})
        write_results(tmp_path / f"b/{name}", {"t": [1, 0]})
    assert compare(tmp_path / "a", tmp_path / "b")[0][0].seeds == 2


def test_targets_are_those_of_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, its adapter, a model's folder and a hub id stand for where `evaluate` put their results."""
    monkeypatch.chdir(tmp_path)
    model, run = tmp_path / "model", tmp_path / "runs/x/seed-0"
    for folder in (model, run / "adapter"):
        folder.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (run / "adapter/adapter_config.json").write_text("{}")
    (run / "fit.yaml").touch()
    write_results(run, {"t": [1, 1]})
    write_results(Path("runs") / base_folder(str(model)), {"t": [1, 0]})
    write_results(Path("runs") / base_folder("org/model"), {"t": [0, 0]})
    for target, mean in ((run, 100), (run / "adapter", 100), (run.parent, 100), (model, 50)):
        (task,), *_ = compare(target, "org/model")
        assert (task.a, task.b) == (mean, 0)
