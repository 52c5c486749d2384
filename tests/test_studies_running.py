"""Studies run for real, on a model of a few thousand parameters: from one file to a table, again, killed, failing."""

import gc
import json
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_backbone
from processes import in_process
from small_experiment import adapter_bytes
from small_suite import write_suite
from torch._subclasses.fake_tensor import FakeTensor

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.studies.jobs import Job
from forgetting.studies.plan import Plan
from forgetting.studies.results import RunFolders
from forgetting.studies.spec_file import load_study

STUDY = """
title: Sums
seeds: 2
suite: small.yaml
columns:
  - Sums
  - {name: Held-out nll, metric: validation/nll, decimals: 3}
  - {name: Minutes, cost: fit}
  - {name: AUC, noise: auc}
  - {name: Recall of lies, noise: recall/lie}
config:
  trainer: {accelerator: cpu, devices: 1, precision: 32-true, val_check_interval: 1.0}
  model: {backbone: backbone, dtype: float32, learning_rate: 1.0e-2, lora: {rank: 4}, objective: OBJECTIVE}
  data:
    corpus:
      sources: {made: {path: source.jsonl, prompt: "{question}", response: "{answer}", noise: noise}}
      num_train: 24
      num_reference: 12
      num_validation: 4
    max_length: 64
    batch_size: 6
groups:
  - name: Small
    rows:
      - {name: Base, base: true}
      - {name: Full, set: {model.objective: MeanNLL, data.positive_fraction: all}}
      - {name: Half, set: {data.positive_fraction: 0.5}}
      - {name: Most}
    compare: [[Half, Most], [Full, Base]]
"""


def write_work(folder: Path) -> None:
    """A study in one file outside of any `experiments/`, its data, its suite, and a base model."""
    write_backbone(folder / "backbone")
    rows = [
        {"question": f"{i} plus {i % 7}?", "answer": f" It is {i + i % 7}.", "noise": [[1, 3, "lie"]] if i % 3 else []}
        for i in range(50)
    ]
    (folder / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_suite(folder, rows[:6])
    (folder / "mine.yaml").write_text(STUDY.replace("OBJECTIVE", "{class_path: Forgetting}"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_work(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table's rows by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def bytes_of_tensors() -> int:
    """Memory of all tensors that Python knows; those that torch.compile traces with have none, and no size either."""
    gc.collect()
    kinds = ((thing, type(thing)) for thing in gc.get_objects())
    tensors = (thing for thing, kind in kinds if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor))
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.slow
def test_one_file_to_one_table_and_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bytes_of_tensors()
    main(["table", "mine.yaml", "--run"])
    assert bytes_of_tensors() - before < 100_000  # a job leaves nothing to the next one
    first = capsys.readouterr()
    rows = lines_of(first.out)
    assert rows["Full"][0] == "2 seeds"
    assert all("±" in cell for cell in rows["Half"][1:3])
    assert rows["Full"][4:] == ["—", "—"]  # every token is positive: nothing was detected
    assert all(cell != "—" for cell in rows["Half"][4:])
    assert rows["Base"][0] == ""
    assert rows["Base"][2:] == ["—"] * 4
    assert re.search(r"\[.*\], [012] of 2", rows["Half − Most"][2])
    assert "Missing" not in first.out
    assert not [row for row in rows if "ours" in rows[row]]

    # What it printed as commands can be typed: nothing is trained again.
    files = {path: path.stat().st_mtime_ns for path in Path().rglob("*.safetensors")}
    plan = Plan(load_study(Path("mine.yaml")), RunFolders())
    assert plan.pending() == []
    (fit,) = [job for job in plan.jobs.values() if job.stage == "fit" and job.run_id == "mine/run" and job.seed == 1]
    main(list(fit.arguments))
    assert "is complete: its adapter is trained" in capsys.readouterr().out
    main(["table", "mine.yaml", "--run"])
    second = capsys.readouterr()
    assert second.out == first.out
    assert "nothing is missing" in second.err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*.safetensors")} == files

    # An edited study is not silently that of the runs that are there.
    edited = Path("mine.yaml").read_text().replace("learning_rate: 1.0e-2", "learning_rate: 2.0e-2")
    Path("mine.yaml").write_text(edited)
    with pytest.raises(UserError, match=r"holds a run of another configuration"):
        main(["table", "mine.yaml", "--run"])


@pytest.mark.slow
def test_a_failing_job_leaves_the_others(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = yaml.safe_load(Path("mine.yaml").read_text())
    study |= {"seeds": 1, "columns": ["Sums"]}
    study["groups"][0]["rows"][2]["set"] = {"data.positive_fraction": 7}
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(UserError, match="1 jobs failed and 1 were skipped") as caught:
        main(["table", "mine.yaml", "--run"])
    said = str(caught.value)
    log = "runs/logs/fit/mine/run@positive_fraction=7/seed-0.log"
    assert re.search(rf"fit mine/run@positive_fraction=7/seed-0: .*7.* What it printed is in {re.escape(log)}", said)
    assert Path(log).is_file()
    assert "evaluate corrected/small/mine/run@positive_fraction=7/seed-0: skipped, for it needs fit mine/run@p" in said
    out = capsys.readouterr().out
    rows = lines_of(out)
    assert rows["Half"] == ["", "—"]
    assert all(rows[name][1] != "—" for name in ("Base", "Full", "Most"))
    assert "- Half (Small): `python -m forgetting fit --config runs/experiments/mine/run.yaml" in out


@pytest.mark.slow
def test_a_killed_study_is_resumed_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path("runs/mine/run/seed-0")
    command = ["table", "mine.yaml", "--seeds", "1", "--run", "--output", "table.csv"]
    tables = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        write_work(folder)
        study = Path(folder / "mine.yaml")
        others = "      - {name: Half, set: {data.positive_fraction: 0.5}}\n"
        full = "      - {name: Full, set: {model.objective: MeanNLL, data.positive_fraction: all}}\n"
        minutes = "  - {name: Minutes, cost: fit}\n"
        text = study.read_text()
        for part in (others, full, minutes, "    compare: [[Half, Most], [Full, Base]]\n"):
            assert part in text
            text = text.replace(part, "")
        study.write_text(text)
        monkeypatch.chdir(folder)
        if name == "killed":  # the reference has two steps, a run four
            at_step_3 = "{class_path: small_experiment.SignalAt, init_args: {step: 3}}"
            Path("kill.yaml").write_text(f"trainer: {{callbacks: [{at_step_3}]}}")
            assert in_process([*command, "--config", "kill.yaml"]) == -signal.SIGKILL
            assert Path("runs/mine/reference/seed-0/adapter").exists() != (run / "adapter").exists()
        assert in_process(command) == 0
        tables[name] = (Path("table.csv").read_text(), adapter_bytes(run))
    assert tables["whole"] == tables["killed"]


def test_repetitions_that_are_overlays_have_runs_of_their_own(work: Path) -> None:
    for n in (1, 2):
        Path(f"world-{n}.yaml").write_text(
            f"seed_everything: {n}\ndata: {{reference_seed: {n}, corpus: {{seed: {n}}}}}"
        )
    study = yaml.safe_load(Path("mine.yaml").read_text())
    del study["seeds"]
    study["repeats"] = [{"overlay": "world-1.yaml", "suite": "small.yaml"}, "world-2.yaml"]
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    plan = Plan(load_study(Path("mine.yaml")), RunFolders())
    runs = [run.folder.as_posix() for run in plan.of("Small", "Half")]
    assert runs == [f"runs/mine/run@world-{n}+positive_fraction=0.5/seed-{n}" for n in (1, 2)]
    references = [job for job in plan.jobs.values() if job.stage == "reference"]
    assert [(job.run_id, job.seed) for job in references] == [(f"mine/reference@world-{n}", n) for n in (1, 2)]
    assert len({key for key in plan.jobs if key[0] == "prepare"}) == 2
    assert len(plan.of("Small", "Base")) == 1  # one model: one result
    with pytest.raises(UserError, match="is repeated over 2 overlays: leave the seeds out"):
        main(["table", "mine.yaml", "--seeds", "3"])


def test_a_user_s_objective_needs_the_scores_whatever_the_fraction(work: Path) -> None:
    study = yaml.safe_load(Path("mine.yaml").read_text())
    study["groups"][0]["rows"][1]["set"]["model.objective"] = "my_package.MyObjective"
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    jobs = Plan(load_study(Path("mine.yaml")), RunFolders()).jobs
    needs = {job.run_id: job.needs[0][0] for job in jobs.values() if job.stage == "fit"}
    assert needs["mine/run@positive_fraction=all+objective=MyObjective"] == "score"


def test_a_run_that_goes_on_from_its_reference_needs_one(work: Path) -> None:
    study = yaml.safe_load(Path("mine.yaml").read_text())
    full = study["groups"][0]["rows"][1]["set"]
    for start, need in (("fresh", "prepare"), ("reference", "score")):
        full["model.start"] = start
        Path("mine.yaml").write_text(yaml.safe_dump(study))
        jobs = Plan(load_study(Path("mine.yaml")), RunFolders()).jobs
        needs = {job.run_id: job.needs[0][0] for job in jobs.values() if job.stage == "fit"}
        (run,) = [run_id for run_id in needs if run_id.endswith(f"start={start}")]
        assert needs[run] == need


@pytest.mark.parametrize("place", [2, 3])  # the last row that needs the scores, or not
def test_the_scores_have_what_any_row_asks_for_and_are_made_again_for_it(work: Path, place: int) -> None:
    manifest = Path("runs/mine/reference/seed-0/scores/manifest.json")

    def score_job() -> Job:
        jobs = Plan(load_study(Path("mine.yaml")), RunFolders()).jobs
        (job,) = [job for job in jobs.values() if job.stage == "score"]
        return job

    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"columns": ["nll_base", "nll_reference"]}))
    assert score_job().artifact() is not None
    study = yaml.safe_load(Path("mine.yaml").read_text())
    study["groups"][0]["rows"][place].setdefault("set", {}).update({"data.promptless": True, "data.score": "PromptFit"})
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    assert "--data.promptless=true" in score_job().arguments
    assert score_job().artifact() is None
    manifest.write_text(json.dumps({"columns": ["nll_base", "nll_reference", "nll_promptless"]}))
    assert score_job().artifact() is not None


def test_a_column_of_the_suite_may_have_its_best_value_at_the_bottom(work: Path) -> None:
    text = Path("mine.yaml").read_text()
    for best, is_least in (("least", True), ("most", False)):
        Path("mine.yaml").write_text(text.replace("  - Sums", f"  - {{name: Sums, best: {best}}}"))
        column = load_study(Path("mine.yaml")).columns[0]
        assert (column.kind, column.name, column.lower_is_better) == ("suite", "Sums", is_least)


@pytest.mark.parametrize("devices", ["devices: 2", "devices: [0, 1]", "devices: 1, num_nodes: 2"])
def test_a_process_per_device_is_not_started_from_here(work: Path, devices: str) -> None:
    Path("mine.yaml").write_text(Path("mine.yaml").read_text().replace("devices: 1", devices))
    with pytest.raises(UserError, match=r"runs its jobs in one process\. Lay --config configs/machines/one-gpu.yaml"):
        main(["table", "mine.yaml", "--run"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("suite: small.yaml", "suite: smal.yaml"), r"there is no suite smal\.yaml"),
        (("suite: small.yaml", "suite: smal"), r"there is no suite 'smal'\. Known: abilities, architectures, main"),
        (("  - Sums", "  - {name: Sums, best: low}"), "'Sums': best is 'low'; least or most was expected"),
        (("cost: fit", "cost: fit, best: least"), "'Minutes': best is of a column of the suite; of a cost it is known"),
        (("config:\n", "configs:\n"), "has unknown keys configs"),
        (("metric: validation/nll", "metrics: validation/nll"), "columns has unknown keys metrics"),
        (("metric: validation/nll, ", ""), "'Held-out nll' has none of metric, cost, noise"),
        (("noise: auc", "noise: area"), "noise is 'area'; one of auc, average_precision, precision, recall"),
        (("cost: fit", "cost: score"), "cost is 'score'; one of fit, evaluate was expected"),
        (
            ("{model.objective: MeanNLL, data.positive_fraction: all}", "[1]"),
            "set: a mapping from settings to values was expected, not a list",
        ),
        (("data.positive_fraction: all", "positive_fraction: all"), "set: 'positive_fraction' is no setting; model"),
        (("data.positive_fraction: all", "run.root: x"), r"set: 'run\.root' is no setting"),
        (("{name: Most}", "{name: Most, run: other}"), "are runs of it. Leave `run` out"),
        (("{name: Most}", "{name: Most, base: backbone, set: {}}"), "`set` changes a run, and this row has none"),
        (("seeds: 2", "seeds: 0"), "seeds=0: a number of seeds, at least 1, or a list such as 0,5,7 is expected"),
        (("seeds: 2", "seeds: 2\nrepeats: [small.yaml]"), "has `repeats` and `seeds`"),
        (("seeds: 2", "repeats: [{suite: small.yaml}]"), "repeats lacks overlay"),
        (("seeds: 2", "overlays: [absent.yaml]"), "absent.yaml"),
        (("seeds: 2", "experiments: nowhere"), "there is no folder nowhere"),
    ],
    ids=lambda value: value[1][:30] if isinstance(value, tuple) else None,
)
def test_a_study_that_cannot_be_meant_is_one_early_message(work: Path, change: tuple[str, str], message: str) -> None:
    text = Path("mine.yaml").read_text()
    assert change[0] in text
    Path("mine.yaml").write_text(text.replace(*change))
    with pytest.raises(UserError, match=message):
        main(["table", "mine.yaml", "--run"])
    assert not Path("runs/logs").exists()
