"""Tables from run folders: none of the runs there, some, all; in every format."""

import csv
import json
import os
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from forgetting.artifacts import hash_content
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.evaluation.finished import write_task
from forgetting.evaluation.naming import results_name, task_path
from forgetting.model.adapter_folder import adapter_hash
from forgetting.studies.collect import collect
from forgetting.studies.command import table_command
from forgetting.studies.pairs import Difference
from forgetting.studies.plan import Plan
from forgetting.studies.render import FORMATS, SUFFIXES, render
from forgetting.studies.results import RunFolders
from forgetting.studies.spec_file import load_study
from forgetting.studies.table import Line, Table

RESULTS = results_name("small", "corrected")
EVERYTHING = "python -m forgetting table experiments/tables/table0.yaml --run"
GOLDEN = Path(__file__).parent / "golden" / "tables"
SPEC = """
title: Table 0
caption: A table with names that every format must escape, 50% & <b>more</b>.
suite: small.yaml
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
  - {where: "§1", value: 7.0, group: "Model_a | 1B", row: "Forgetting *new*", over: "Ignoring $x$",
     erratum: "§1 says 7."}
notes: [A note.]
"""
SUITE = "name: small\ncolumns: {Truth_1: {tasks: [truth]}, Math: {tasks: [math]}}\n"


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "experiments/tables/table0.yaml"
    for folder in (file.parent, tmp_path / "experiments/t"):
        folder.mkdir(parents=True)
    for name in ("ignoring", "forgetting", "alone"):
        (tmp_path / f"experiments/t/{name}.yaml").write_text("data: {positive_fraction: all}\n")
    file.with_name("small.yaml").write_text(SUITE)
    file.write_text(SPEC)
    return file


def write_results(
    folder: Path, truth: list[int], math: list[int] | None, suite: str = "small", **settings: Any
) -> None:  # fmt: skip
    """A run that was evaluated: one 0 or 1 a document; a task without documents failed. `settings`: of `evaluate`."""
    is_run = folder.name.startswith("seed-")
    if is_run:
        write_run(folder)
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
            "identity": f"{task}-of-this-run", "metric": "acc", "data": {"hash": "0" * 64},
            "metrics": {"acc": statistics.fmean(scores)} if scores else {},
        }  # fmt: skip
        records = [{"document": n, "hash": f"{n}", "metrics": {"acc": score}} for n, score in enumerate(scores or [])]
        write_task(task_path(folder, task, tasks[task]["identity"]), tasks[task], records, whole=False)
    values = [column["value"] for column in columns.values()]
    average = None if None in values else statistics.fmean(values)
    content = {
        "format": 1, "suite": suite, "protocol": "corrected", "columns": columns, "average": average, "tasks": tasks,
        "target": {
            "name": str(folder), "base": {"name": "org/model", "revision": None, "hash": "b" * 64}, "merged": False,
            "adapter": {"hash": adapter_hash(folder / "adapter")} if is_run else None,
        },
        "versions": {"lm_eval": "0.4.13"}, "dtype": "float32", "batch_size": 8, "seed": 42, **settings,
    }  # fmt: skip
    (folder / results_name(suite, "corrected")).write_text(json.dumps(content))


def write_run(folder: Path, weights: str = "", corpus: str = "c" * 64, **settings: Any) -> None:
    """A finished run as `fit` leaves it; `settings` of what it computes."""
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter/adapter_config.json").write_text("{}")
    (folder / "adapter/adapter_model.safetensors").write_text(weights or folder.name)
    computed = {"model": {"learning_rate": 1e-4, "dtype": "float32"}, "data": {"positive_fraction": 0.7}} | settings
    inputs = {
        "corpus": corpus, "tokens": "t" * 64, "base": {"name": "org/model", "revision": None, "hash": "b" * 64},
        "adapter": None, "store": "s" * 64, "reference": "r" * 64,
    }  # fmt: skip
    content = {"format": 1, "config_hash": hash_content(computed), "computed": computed, "inputs": inputs}
    (folder / "provenance.json").write_text(json.dumps(content))


def some_runs(root: Path) -> None:
    """One seed evaluated, one only trained; a method that was started; the rest absent."""
    write_results(root / "t/ignoring/seed-0", [1, 0, 0, 1], [1, 0])
    write_run(root / "t/ignoring/seed-1")
    (root / "t/forgetting/seed-0").mkdir(parents=True)


def all_runs(root: Path) -> None:
    write_results(root / "base/org--model", [0, 0, 0, 1], [0, 0])
    for seed in range(3):
        write_results(root / f"t/ignoring/seed-{seed}", [1, 0, 0, int(seed > 0)], [1, 0])
        write_results(root / f"t/forgetting/seed-{seed}", [1, 1, 0, 1], [1, int(seed > 1)])
        write_results(root / f"t/alone/seed-{seed}", [1, 1, 1, 0], [0, 0])


def table_of(spec_file: Path, root: Path, make: Any) -> Table:
    make(root)
    return collect(Plan(load_study(spec_file), RunFolders(root)), EVERYTHING)


STATES = {"none": lambda root: None, "some": some_runs, "all": all_runs}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("state", STATES)
def test_a_table_is_as_its_golden_file(
    spec_file: Path, tmp_path: Path, monkeypatch: Any, state: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = table_of(spec_file.relative_to(tmp_path), Path("runs"), STATES[state])
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
    expected = compare(runs / "t/forgetting", runs / "t/ignoring").columns
    assert pair.differences == [Difference(d.difference, d.low, d.high, None, 3) for d in expected]


def test_rows_of_other_seeds_differ_by_those_they_share(spec_file: Path, tmp_path: Path) -> None:
    def fewer(root: Path) -> None:
        all_runs(root)
        for seed in (0, 2):
            shutil.rmtree(root / f"t/ignoring/seed-{seed}")

    table = table_of(spec_file, tmp_path / "runs", fewer)
    (difference, *_) = table.sections[0].pairs[0].differences
    assert difference is not None
    assert (difference.difference, difference.num_pairs) == (25, 1)  # of seed 1: 75 − 50
    note = "Forgetting *new* − Ignoring $x$ (Model_a | 1B): 1 seed of 3 and 1"
    assert any(note in fact for fact in table.facts)
    assert not any(note in fact for fact in table_of(spec_file, tmp_path / "all", all_runs).facts)


def test_a_base_model_has_no_seed_that_runs_would_lack(spec_file: Path, tmp_path: Path) -> None:
    def with_base(root: Path) -> None:
        all_runs(root)
        write_results(root / "base/org--model", [0, 0, 0, 1], [0, 0])

    spec_file.write_text(SPEC.replace('[["Forgetting *new*", "Ignoring $x$"]]', '[["Forgetting *new*", Base]]'))
    table = table_of(spec_file, tmp_path / "runs", with_base)
    (difference, *_) = table.sections[0].pairs[0].differences
    assert difference is not None
    assert (difference.difference, difference.num_pairs) == (50, 3)  # 75 of each seed − 25
    assert not any("Differences over" in fact for fact in table.facts)


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
        "title: A\nsuite: small.yaml\ncolumns: [AVG]\ngroups: [{name: G, rows: [{name: R, run: t/ignoring}]}]\n"
    )
    table = table_of(spec_file, tmp_path / "runs", some_runs)
    assert table.facts[0] == "Protocol corrected; documents: Truth_1 4, Math 2."


def test_results_of_another_suite_do_not_count_and_are_refused_under_the_tables_name(
    spec_file: Path, tmp_path: Path
) -> None:
    def make(root: Path) -> None:
        write_results(root / "t/ignoring/seed-0", [1], [1], suite="other")

    assert table_of(spec_file, tmp_path / "runs", make).sections[0].lines[1].num_runs == 0
    folder = tmp_path / "runs/t/ignoring/seed-0"
    (folder / "results.other.json").rename(folder / "results.small.json")

    with pytest.raises(UserError, match=r"is of the suite other, the table needs small\. Evaluate again: python -m"):
        collect(Plan(load_study(spec_file), RunFolders(tmp_path / "runs")))


# --- what belongs together --------------------------------------------------------------------------------------------


def ignoring_line(table: Table) -> Line:
    return next(line for line in table.sections[0].lines if line.row.name.startswith("Ignoring"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"positive_fraction": 0.5}},
            r"seed-2 differs from .*seed-0 in data\.positive_fraction \(0\.5, not 0\.7\)\. Move the folders",
        ),
        ({"corpus": "d" * 64}, r"seed-2 differs from .*seed-0 in its corpus\. Move the folders"),
    ],
)
def test_seeds_that_do_not_belong_together_have_no_mean(
    spec_file: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        write_run(root / "t/ignoring/seed-2", **change)

    table = table_of(spec_file, tmp_path / "runs", make)
    line = ignoring_line(table)
    assert line.ours == [None, None, None]
    assert line.num_runs == 0
    assert any(re.search(message, problem) for problem in table.problems), table.problems
    assert table.sections[0].lines[2].ours[0] is not None  # the other rows stand
    assert not table.sections[0].pairs


def test_a_seed_of_unknown_origin_is_not_averaged_with_others(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        (root / "t/ignoring/seed-1/provenance.json").unlink()

    table = table_of(spec_file, tmp_path / "runs", make)
    assert ignoring_line(table).ours[0] is None
    assert any("seed-1 has no provenance.json" in problem for problem in table.problems)


def test_a_result_of_an_adapter_trained_again_since_is_missing(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        write_run(root / "t/ignoring/seed-2", weights="other")

    monkeypatch.chdir(tmp_path)
    table = table_of(spec_file, Path("runs"), make)
    line = ignoring_line(table)
    assert line.num_runs == 2
    assert line.ours[0] is not None
    assert line.ours[0].mean == pytest.approx((25 + 50) / 2)
    suite = spec_file.with_name("small.yaml")
    assert line.commands == [f"python -m forgetting evaluate runs/t/ignoring/seed-2 --suite {suite}"]
    assert any(f"seed-2/{RESULTS} is of another adapter than" in problem for problem in table.problems)
    assert not table.sections[0].pairs  # which would read it


def test_results_whose_adapter_is_gone_are_noted(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        shutil.rmtree(root / "t/ignoring/seed-1/adapter")

    table = table_of(spec_file, tmp_path / "runs", make)
    assert ignoring_line(table).num_runs == 3
    (problem,) = table.problems
    assert problem.startswith("Adapters are gone")
    assert problem.endswith("t/ignoring/seed-1.")


def test_rows_of_a_group_with_other_inputs_are_noted(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        for seed in range(3):
            write_run(root / f"t/ignoring/seed-{seed}", corpus="d" * 64, model={"dtype": "bfloat16"})

    table = table_of(spec_file, tmp_path / "runs", make)
    assert ignoring_line(table).num_runs == 3
    assert table.problems == [
        "Rows of Model_a | 1B do not share their model.dtype (Ignoring $x$ against Forgetting *new*, Ours alone), "
        "corpus (Ignoring $x$ against Forgetting *new*, Ours alone)."
    ]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"dtype": "bfloat16"}, "dtype: bfloat16 in {folder}, float32 in the other 9"),
        ({"seed": 1}, "seed: 1 in {folder}, 42 in the other 9"),
        ({"batch_size": "auto"}, "batch size: auto in {folder}, 8 in the other 9"),
        ({"versions": {"lm_eval": "0.5.0"}}, "lm-evaluation-harness: 0.5.0 in {folder}, 0.4.13 in the other 9"),
    ],
)
def test_results_evaluated_in_another_way_are_noted(
    spec_file: Path, tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        write_results(root / "t/alone/seed-1", [1, 1, 1, 0], [0, 0], **settings)

    assert table_of(spec_file, tmp_path / "alike", all_runs).problems == []
    table = table_of(spec_file, tmp_path / "runs", make)
    folder = tmp_path / "runs/t/alone/seed-1"
    assert table.problems == [f"Not all results were evaluated with the same {name.format(folder=folder)}."]


def test_results_on_other_data_or_merged_weights_are_noted(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        for seed, change in ((0, "data"), (1, "merged")):
            file = root / f"t/alone/seed-{seed}" / RESULTS
            content = json.loads(file.read_text())
            if change == "data":
                content["tasks"]["math"]["data"]["hash"] = "1" * 64
            else:
                content["target"]["merged"] = True
            file.write_text(json.dumps(content))

    data, merged = sorted(table_of(spec_file, tmp_path / "runs", make).problems)
    assert "the same data of math: 1111111111111111 in" in data
    assert "the same merge: True in" in merged


def test_only_seed_folders_are_runs(spec_file: Path, tmp_path: Path) -> None:
    def make(root: Path) -> None:
        all_runs(root)
        for name in ("seed-0.old", "seed-x", "seed-", "seed-01", "seed-0-old"):
            write_results(root / "t/ignoring" / name, [0, 0, 0, 0], [0, 0])

    table = table_of(spec_file, tmp_path / "runs", make)
    assert ignoring_line(table).num_runs == table.sections[0].pairs[0].differences[0].num_pairs == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [RESULTS, "provenance.json"])
@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", "{", "[" * 100_000, '{"suite": "small", "columns": [], "tasks": 3}', "garbage\0"]
)
def test_a_damaged_file_of_a_run_is_one_message(spec_file: Path, tmp_path: Path, name: str, content: str) -> None:
    all_runs(tmp_path)
    file = tmp_path / "t/ignoring/seed-1" / name
    file.write_text(content)
    with pytest.raises(UserError, match=f"{re.escape(str(file))} .*(Evaluate again|Move)"):
        main(["table", str(spec_file), "--runs", str(tmp_path)])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["columns", "Math"], None), (["columns", "Math", "value"], "50"), (["columns", "Math", "tasks"], ["gone"]),
        (["average"], []), (["tasks", "math"], []), (["versions"], {}), (["target"], "run"),
    ],
    ids=str,
)  # fmt: skip
def test_a_result_of_another_shape_is_one_message(
    spec_file: Path, tmp_path: Path, place: list[str], value: Any
) -> None:
    all_runs(tmp_path)
    file = tmp_path / "t/ignoring/seed-1" / RESULTS
    content = part = json.loads(file.read_text())
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is not as `evaluate` writes it.* Evaluate again: python -m forgetting"):
        main(["table", str(spec_file), "--runs", str(tmp_path)])


def test_an_overlay_reads_folders_of_its_own(spec_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_results(runs / "t/ignoring@slow/seed-0", [1, 1], [1])
    write_results(runs / "t/ignoring/seed-0", [0, 0], [0])
    overlay = tmp_path / "slow.yaml"
    overlay.write_text("model: {learning_rate: 1.0e-5}\n")
    table = collect(Plan(load_study(spec_file), RunFolders(runs), [overlay]))
    value = table.sections[0].lines[1].ours[0]
    assert value is not None
    assert value.mean == 100
    assert f"--config {overlay}" in table.sections[0].lines[2].commands[0]
    assert f"Runs with {overlay} laid over them." in table.facts


def test_given_seeds_are_those_of_the_table(spec_file: Path, tmp_path: Path) -> None:
    all_runs(tmp_path)
    table = collect(Plan(load_study(spec_file), RunFolders(tmp_path), seeds=[0, 2, 5]))
    line = ignoring_line(table)
    assert (list(line.folders), line.num_further) == (["seed-0", "seed-2"], 0)
    assert line.commands[0].endswith("--seed_everything=5")
    assert table.sections[0].pairs[0].differences[0].num_pairs == 2  # type: ignore[union-attr]


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
        (["{folder}/table7.yaml"], r"There is no study .*table7\.yaml\. YAML files in .*: small\.yaml, table0\.yaml"),
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
        (("suite: small.yaml", "suits: small.yaml"), "has unknown keys suits; known: caption, columns"),
        (("title: Table 0\n", ""), "lacks title"),
        (("paper: [20±0, 10±0, 15±0]", "paper: [20±0, 10±0]"), "row 1 'Base' has 2 paper values for 3 columns"),
        (("20±0", "20+-0"), r"'20\+-0' is not a number nor mean±sd"),
        (("base: org/model", "base: org/model, run: t/x"), "exactly one is expected"),
        (("run: t/ignoring, ", ""), "has none of run, base"),
        (('compare: [["Forgetting *new*"', 'compare: [["Forgetting"'), "refers to rows that it does not have"),
        (("run: t/forgetting", "total: [Base]"), "only rows with a `run` or a `base` can be compared"),
        (("kind: lines", "kind: bars"), "kind is 'bars'; lines, heatmap, differences were expected"),
        (("column: AVG}", "column: AVG, z: 1}"), "figure has unknown keys z"),
        (("title:", "title: ["), "is not valid YAML"),
        (("columns: [Truth_1, Math, AVG]", "columns: Truth_1"), "columns: a list was expected, not 'Truth_1'"),
        (("columns: [Truth_1, Math, AVG]", "columns: [1, 2, 3]"), "columns: text was expected, not 1"),
        (("columns: [Truth_1, Math, AVG]", "columns: [Math, Math, AVG]"), "the column 'Math' is there 2 times"),
        ((SPEC, "groups: {a: 1}\ntitle: A\ncaption: A\ncolumns: [A]"), "groups: a list was expected, not a mapping"),
        ((SPEC, "groups: []\ntitle: A\ncaption: A\ncolumns: [A]"), "has no groups"),
        (("  - name: Model_a | 1B\n", "  - 3\n  - name: Model_a | 1B\n"), "group 1 is not a mapping"),
        (("      - {name: Base", "      - 3\n      - {name: Base"), "row 1 is not a mapping"),
        (("name: Base, ", ""), "group 1, row 1 lacks name"),
        (("name: Base", "name: [a]"), "row 1, name: text was expected, not a list"),
        (("name: Ours alone", "name: Base"), "the row 'Base' is there 2 times"),
        (('"Ignoring $x$"]]', '"Ignoring $x$", Base]]'), "compare: two names of rows were expected, not 3"),
        (('[["Forgetting *new*", "Ignoring $x$"]]', "3"), "compare: a list was expected, not 3"),
        (("paper: [20±0, 10±0, 15±0]", "paper: 20"), "row 1 'Base', paper: a list was expected, not 20"),
        (("20±0", "1.2.3"), "'1.2.3' is not a number nor mean±sd"),
        (("at: {ρ: 0.4}", "at: 0.4"), "at: a mapping from axes to numbers was expected, not 0.4"),
        (("at: {ρ: 0.4}", "at: {ρ: low}"), r"at\.ρ: a number was expected, not 'low'"),
        (("at: {ρ: 0.4}, ", ""), "row 'Base' has no 'ρ' in `at`"),
        (("x: ρ, column: AVG}", "x: q, column: AVG}"), "row 'Base' has no 'q' in `at`"),
        (("x: ρ, column: AVG}", "x: ρ, column: Nope}"), "figure: there is no column 'Nope'; there are Truth_1"),
        (("kind: lines, x: ρ", "kind: heatmap, x: ρ"), "a heatmap has x and y"),
        (("kind: lines, x: ρ", "kind: heatmap, y: q, x: ρ"), "row 'Base' has no 'q' in `at`"),
        (('group: "Model_a | 1B", row', "group: Nope, row"), r"refers to rows that it does not have: \[\('Nope'"),
        (('group: "Model_a | 1B", row', "group: [a], row"), "stated, group: text was expected, not a list"),
        (("value: 7.0", "value: seven"), "stated, value: a number was expected, not 'seven'"),
        (
            ("suite: small.yaml", "suite: small.yaml\ndecimals: -1"),
            "decimals: a whole number from 0 to 10 was expected, not -1",
        ),
        (
            ("suite: small.yaml", "suite: small.yaml\ndecimals: two"),
            "decimals: a whole number from 0 to 10 was expected, not 't",
        ),
        (("suite: small.yaml", "corpus: t/alone"), "row 'Base' shows results of a benchmark: give `suite`"),
        (("run: t/alone", "run: 3"), "row 4 'Ours alone', run: text was expected, not 3"),
        (("run: t/alone", "run: ../../etc"), "run: '../../etc' is no name of something inside experiments"),
        (("run: t/alone", "total: [Ours alone]"), "exactly one of that name, above it, is expected"),
        (("run: t/alone", "overhead: [Base]"), "overhead: two names of rows were expected, not 1"),
        (("run: t/alone", "stage: fit"), "`runs` and `stage` belong together"),
        (("run: t/alone", "stage: fot, runs: [a, b, c]"), "stage: one of fit, score was expected, not 'fot'"),
        (("notes: [A note.]", "notes: A note."), "notes: a list was expected, not 'A note.'"),
        (("title: Table 0", "title: 3"), "title: text was expected, not 3"),
        ((SPEC, "[a]"), "is not a mapping"),
        ((SPEC, "[" * 5000), "nested too deeply"),
        ((SPEC, "a: " + "{a: " * 3000), "nested too deeply"),
        ((SPEC, f"{SPEC}\n3: 3\n"), "has unknown keys 3"),
    ],
    ids=lambda value: value[1][:30] if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("form", ["md", "svg"])
def test_a_wrong_specification_is_refused(
    spec_file: Path, tmp_path: Path, change: tuple[str, str], message: str, form: str
) -> None:
    assert change[0] in SPEC
    spec_file.write_text(SPEC.replace(*change))
    with pytest.raises(UserError, match=message) as caught:
        main(["table", str(spec_file), "--runs", str(tmp_path), "--output", str(tmp_path / f"table.{form}")])
    assert str(caught.value).startswith(str(spec_file))
    assert not list(tmp_path.glob("table.*"))


def test_a_specification_that_is_no_text_is_refused(spec_file: Path) -> None:
    spec_file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not valid YAML"):
        main(["table", str(spec_file)])
