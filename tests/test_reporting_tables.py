"""Tables from run folders: none of the runs there, some, all; in every format."""

import csv
import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from forgetting.errors import UserError
from forgetting.evaluation.finished import write_task
from forgetting.evaluation.naming import results_name, task_path
from forgetting.reporting.collect import Table, collect
from forgetting.reporting.command import table_command
from forgetting.reporting.render import FORMATS, SUFFIXES, render
from forgetting.reporting.runs import RunFolders
from forgetting.reporting.spec_file import load_spec

GOLDEN = Path(__file__).parent / "golden" / "tables"
SPEC = """
title: Table 0
caption: A table with names that every format must escape, 50% & <b>more</b>.
suite: small
columns: [Truth_1, Math, AVG]
figure: {kind: lines, x: ρ, column: AVG}
groups:
  - name: Model_a | 1B
    rows:
      - {name: Base, base: org/model, at: {ρ: 0.4}, paper: [20±0, 10±0, 15±0]}
      - {name: "Ignoring $x$", run: t/ignoring, at: {ρ: 0.5}, paper: [30.1±0.25, 20.3, 25.2]}
      - {name: "Forgetting *new*", run: t/forgetting, at: {ρ: 0.7}, paper: [40.5±1.5, 20.3, 30.4]}
      - {name: Ours alone, run: t/alone, at: {ρ: 0.9}}
    compare: [["Forgetting *new*", "Ignoring $x$"]]
stated:
  - {where: "§1", value: 7.0, group: "Model_a | 1B", row: "Forgetting *new*", over: "Ignoring $x$", slip: "§1 says 7."}
notes: [A note.]
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "tables" / "table0.yaml"
    file.parent.mkdir()
    file.write_text(SPEC)
    return file


def write_results(folder: Path, truth: list[int], math: list[int] | None, suite: str = "small") -> None:
    """A run that was evaluated: one 0 or 1 a document; a task without documents failed."""
    columns: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    for column, task, scores in (("Truth_1", "truth", truth), ("Math", "math", math)):
        value = None if scores is None else 100 * statistics.fmean(scores)
        columns[column] = {
            "value": value,
            "stderr": None,
            "documents": len(scores or []),
            "tasks": [task],
            "metric": "acc",
        }
        tasks[task] = {
            "status": "ok" if scores else "failed", "error": None if scores else "OutOfMemoryError: too large",
            "identity": f"{task}-of-this-run", "metric": "acc",
            "metrics": {"acc": statistics.fmean(scores)} if scores else {},
        }  # fmt: skip
        records = [{"document": n, "hash": f"{n}", "metrics": {"acc": score}} for n, score in enumerate(scores or [])]
        write_task(task_path(folder, task, tasks[task]["identity"]), tasks[task], records, whole=False)
    values = [column["value"] for column in columns.values()]
    average = None if None in values else statistics.fmean(values)
    content = {
        "format": 1, "suite": suite, "protocol": "corrected", "columns": columns, "average": average, "tasks": tasks,
        "target": {"name": str(folder)}, "versions": {"lm_eval": "0.4.13"},
    }  # fmt: skip
    (folder / results_name(suite, "corrected")).write_text(json.dumps(content))


def adapter(folder: Path) -> None:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").touch()


def some_runs(root: Path) -> None:
    """One seed evaluated, one only trained; a method that was started; the rest absent."""
    write_results(root / "t/ignoring/seed-0", [1, 0, 0, 1], [1, 0])
    adapter(root / "t/ignoring/seed-0")
    adapter(root / "t/ignoring/seed-1")
    (root / "t/forgetting/seed-0").mkdir(parents=True)


def all_runs(root: Path) -> None:
    write_results(root / "base/org--model", [0, 0, 0, 1], [0, 0])
    for seed in range(3):
        write_results(root / f"t/ignoring/seed-{seed}", [1, 0, 0, int(seed > 0)], [1, 0])
        write_results(root / f"t/forgetting/seed-{seed}", [1, 1, 0, 1], [1, int(seed > 1)])
        write_results(root / f"t/alone/seed-{seed}", [1, 1, 1, 0], [0, 0])


def table_of(spec_file: Path, root: Path, make: Any) -> Table:
    make(root)
    return collect(load_spec(spec_file), RunFolders(root))


STATES = {"none": lambda root: None, "some": some_runs, "all": all_runs}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("state", STATES)
def test_a_table_is_as_its_golden_file(
    spec_file: Path, tmp_path: Path, monkeypatch: Any, state: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = table_of(spec_file, Path("runs"), STATES[state])
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == form)
    golden = GOLDEN / f"{state}{suffix}"
    text = render(table, form)
    if "WRITE_GOLDEN" in os.environ:  # read the difference before committing it
        golden.write_text(text)
    assert text == golden.read_text(), (
        f"{golden} differs; if it should, run this test with WRITE_GOLDEN=1 and read the diff"
    )


def test_ours_is_the_mean_and_the_sample_deviation_over_seeds(spec_file: Path, tmp_path: Path) -> None:
    table = table_of(spec_file, tmp_path / "runs", all_runs)
    line = next(line for line in table.sections[0].lines if line.row.name.startswith("Ignoring"))
    truth, math, average = line.ours
    assert truth is not None
    assert math is not None
    assert average is not None
    assert (truth.mean, truth.sd) == (pytest.approx((25 + 50 + 50) / 3), pytest.approx(statistics.stdev([25, 50, 50])))
    assert (math.mean, math.sd) == (50, 0)
    assert average.sd == pytest.approx(statistics.stdev([37.5, 50, 50]))


def test_one_seed_has_no_deviation(spec_file: Path, tmp_path: Path) -> None:
    table = table_of(spec_file, tmp_path / "runs", some_runs)
    ours = table.sections[0].lines[1].ours
    assert [value.sd for value in ours if value] == [None, None, None]


def test_the_paired_interval_is_that_of_compare(spec_file: Path, tmp_path: Path) -> None:
    from forgetting.evaluation.compare import compare

    runs = tmp_path / "runs"
    table = table_of(spec_file, runs, all_runs)
    (pair,) = table.sections[0].pairs
    _, expected = compare(runs / "t/forgetting", runs / "t/ignoring")
    assert pair.differences == expected


def test_a_failed_task_is_no_zero(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        write_results(root / "t/ignoring/seed-0", [1, 0, 0, 1], None)

    table = table_of(spec_file, tmp_path / "runs", make)
    truth, math, average = table.sections[0].lines[1].ours
    assert truth is not None
    assert math is average is None
    assert any("Math failed (OutOfMemoryError: too large)" in problem for problem in table.problems)


def test_rows_on_different_documents_are_noted(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        write_results(root / "t/ignoring/seed-0", [1, 0, 0, 1], [1])
        write_results(root / "t/forgetting/seed-0", [1, 0, 0], [1])

    table = table_of(spec_file, tmp_path / "runs", make)
    assert any("different numbers of documents: Truth_1" in problem for problem in table.problems)
    assert any("No interval for Forgetting" in problem for problem in table.problems)
    assert table.facts[0] == "Protocol corrected; documents: Truth_1 3/4, Math 1."


def test_a_table_of_averages_alone_still_counts_documents(spec_file: Path, tmp_path: Path) -> None:
    spec_file.write_text(
        "title: A\ncaption: A.\nsuite: small\ncolumns: [AVG]\ngroups: [{name: G, rows: [{name: R, run: t/ignoring}]}]\n"
    )
    table = table_of(spec_file, tmp_path / "runs", some_runs)
    assert table.facts[0] == "Protocol corrected; documents: Truth_1 4, Math 2."


def test_results_of_another_suite_do_not_count_and_are_refused_under_the_tables_name(
    spec_file: Path, tmp_path: Path
) -> None:
    def make(root: Path) -> None:
        write_results(root / "t/ignoring/seed-0", [1], [1], suite="other")

    assert table_of(spec_file, tmp_path / "runs", make).sections[0].lines[1].seeds == 0
    folder = tmp_path / "runs/t/ignoring/seed-0"
    (folder / "results.other.json").rename(folder / "results.small.json")

    with pytest.raises(UserError, match=r"is of the suite other, the table needs small\. Evaluate again: python -m"):
        collect(load_spec(spec_file), RunFolders(tmp_path / "runs"))


def test_a_variant_reads_folders_of_its_own(spec_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_results(runs / "t/ignoring@published/seed-0", [1, 1], [1])
    write_results(runs / "t/ignoring/seed-0", [0, 0], [0])
    table = collect(load_spec(spec_file), RunFolders(runs, variant="published"))
    value = table.sections[0].lines[1].ours[0]
    assert value is not None
    assert value.mean == 100
    command = table.sections[0].lines[2].commands[0]
    assert command == "python -m forgetting fit --config experiments/t/forgetting.yaml --config configs/published.yaml"


def test_csv_is_read_back(spec_file: Path, tmp_path: Path) -> None:
    text = render(table_of(spec_file, tmp_path / "runs", all_runs), "csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 4 * 3
    row = next(row for row in rows if row["row"] == "Forgetting *new*" and row["column"] == "Math")
    assert (row["run"], row["seeds"], float(row["ours"]), float(row["paper"])) == (
        "t/forgetting", "3", pytest.approx(200 / 3), 20.3,
    )  # fmt: skip
    assert float(row["difference"]) == pytest.approx(200 / 3 - 20.3)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_markdown(spec_file: Path, tmp_path: Path, capsys: Any) -> None:
    table_command([str(spec_file), "--runs", str(tmp_path / "runs")])
    assert capsys.readouterr().out.startswith("**Table 0.** A table with names")


def test_the_command_writes_each_output_in_its_format(spec_file: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"t{suffix}" for suffix in SUFFIXES]
    all_runs(tmp_path / "runs")
    table_command([str(spec_file), "--runs", str(tmp_path / "runs"), "--output", *map(str, outputs)])
    starts = [output.read_bytes()[:6] for output in outputs]
    assert starts == [b"**Tabl", b"\\begin", b"table,", b"<!doct", b"<?xml ", b"\x89PNG\r\n"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{spec}", "--format", "pdf"],
            "The format 'pdf' is unknown; use --format markdown, latex, csv, html, svg, png",
        ),
        (["{spec}", "--output", "a.txt"], "The format '.txt' is unknown"),
        (["{spec}", "--format", "svg"], "--format svg needs --output FILE"),
        (["{spec}", "--format", "csv", "--output", "a", "b"], "Give --format with one --output"),
        (["{folder}/table7.yaml"], r"There is no table .*table7\.yaml\. Tables in .*: table0\.yaml"),
    ],
)
def test_the_command_says_what_is_wrong(spec_file: Path, arguments: list[str], message: str) -> None:
    filled = [argument.format(spec=spec_file, folder=spec_file.parent) for argument in arguments]
    with pytest.raises(UserError, match=message):
        table_command(filled)


# --- specifications --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("suite: small", "suits: small"), "has unknown keys suits; known: caption, columns"),
        (("title: Table 0\n", ""), "lacks title"),
        (("paper: [20±0, 10±0, 15±0]", "paper: [20±0, 10±0]"), "row 'Base' has 2 paper values for 3 columns"),
        (("20±0", "20+-0"), r"'20\+-0' is not a number nor mean±sd"),
        (("base: org/model", "base: org/model, run: t/x"), "exactly one is expected"),
        (("run: t/ignoring, ", ""), "has none of run, base"),
        (('compare: [["Forgetting *new*"', 'compare: [["Forgetting"'), "refers to rows that it does not have"),
        (('compare: [["Forgetting *new*"', "compare: [[Base"), "only rows with a `run` can be compared"),
        (("kind: lines", "kind: bars"), "kind is 'bars'; lines or heatmap is expected"),
        (("column: AVG}", "column: AVG, z: 1}"), "figure has unknown keys z"),
        (("title:", "title: ["), "is not valid YAML"),
    ],
)
def test_a_wrong_specification_is_refused(spec_file: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in SPEC
    spec_file.write_text(SPEC.replace(*change))
    with pytest.raises(UserError, match=message):
        load_spec(spec_file)
