"""Tables of times and of corpora, and the estimate of what is left."""

import json
import re
import shutil
from pathlib import Path

import pytest

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.studies.collect import collect
from forgetting.studies.estimate import estimate, paper_minutes
from forgetting.studies.jobs import Job, needs_store
from forgetting.studies.plan import Plan
from forgetting.studies.render import render
from forgetting.studies.results import RunFolders
from forgetting.studies.spec import Value
from forgetting.studies.spec_file import load_study

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def write_cost(folder: Path, stage: str, *minutes: float) -> None:
    """A folder that has been through a stage, which took so long."""
    finished = {"fit": ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
                "score": ["scores/manifest.json"]}  # fmt: skip
    for name in finished.get(stage, []):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    file = folder / "cost.json"
    entries = json.loads(file.read_text()) if file.is_file() else []
    entries += [
        {"stage": stage, "seconds": 60 * m, "device": "NVIDIA H100", "tokens": 1, "peak_memory_bytes": 1}
        for m in minutes
    ]
    file.write_text(json.dumps(entries))


def test_table_11_is_filled_from_costs(tmp_path: Path) -> None:
    for model in ("llama-3.2-3b", "llama-3.1-8b"):
        reference = tmp_path / f"table3/{model}/reference/seed-0"
        write_cost(reference, "fit", 18)
        write_cost(reference, "score", 22)
    for seed, minutes in enumerate((100, 110)):
        write_cost(tmp_path / f"table3/llama-3.2-3b/full/seed-{seed}", "fit", minutes)
        write_cost(tmp_path / f"table3/llama-3.2-3b/forgetting-token/seed-{seed}", "fit", minutes)
    table = collect(Plan(load_study(EXPERIMENTS / "tables/table11.yaml"), RunFolders(tmp_path)))
    ours = {line.row.name: line.ours for section in table.sections for line in section.lines}
    warmup, full = ours["Warmup Training"][0], ours["Full Token"][0]
    assert warmup is not None
    assert full is not None
    assert (warmup.mean, full.mean, full.sd) == (pytest.approx(18), pytest.approx(105), pytest.approx(7.0710678))
    total, overhead = ours["Forgetting (warmup + score + training)"][0], ours["Forgetting vs Full Token"][0]
    assert total is not None
    assert overhead is not None
    assert (total.mean, overhead.mean) == (pytest.approx(18 + 22 + 105), pytest.approx(100 * 40 / 105))
    assert ours["Forgetting (warmup + score + training)"][1] is None  # the 8B model has not been trained
    text = render(table, "markdown")
    assert "Ours on NVIDIA H100." in text
    assert "/table3/llama-3.1-8b/full.yaml --run.root=" in text


def test_the_time_of_a_part_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "table3/llama-3.2-3b/full/seed-0"
    write_cost(folder, "fit", 100)

    def minutes() -> Value | None:
        table = collect(Plan(load_study(EXPERIMENTS / "tables/table11.yaml"), RunFolders(tmp_path)))
        return next(line.ours[0] for s in table.sections for line in s.lines if line.row.name == "Full Token")

    assert minutes() == Value(100.0)
    shutil.rmtree(folder / "adapter")  # stopped before its end
    assert minutes() is None


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"stage": "fit"}]', '[{"stage": "fit", "seconds": "1"}]', "["])
def test_damaged_times_are_one_message(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "table3/llama-3.2-3b/full/seed-0"
    write_cost(folder, "fit", 100)
    (folder / "cost.json").write_text(content)
    with pytest.raises(UserError, match=r"cost\.json .* Move it away: the times in it are lost, the results are not"):
        main(["table", str(EXPERIMENTS / "tables/table11.yaml"), "--runs", str(tmp_path)])


@pytest.mark.parametrize(
    "content", ["[]", "{}", "[" * 100_000, '{"splits": []}', '{"splits": {"train": {"sources": {"dolly": 3}}}}', None]
)
def test_a_folder_that_is_no_corpus_is_one_message(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"Give --corpus the folder that `python -m forgetting prepare` prints"):
        main(["table", str(EXPERIMENTS / "tables/table1.yaml"), "--corpus", str(tmp_path)])


def test_table_1_is_filled_from_a_manifest(tmp_path: Path) -> None:
    train = {"dolly": {"samples": 1}, "flan_v2": {"samples": 3}}
    splits = {"train": {"sources": train}, "reference": {"sources": {"dolly": {"samples": 5}}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": splits}))
    table = collect(Plan(load_study(EXPERIMENTS / "tables/table1.yaml"), RunFolders(corpus=tmp_path)))
    dolly = [value.mean for value in table.sections[0].lines[0].ours if value]
    assert dolly == [1, 25, 5, 100]
    assert not table.missing()


def test_without_a_corpus_table_1_says_how_to_make_one() -> None:
    table = collect(Plan(load_study(EXPERIMENTS / "tables/table1.yaml"), RunFolders()))
    commands = table.missing()[0].commands
    assert re.fullmatch(
        r"python -m forgetting prepare --config .*experiments/table3/llama-3.2-1b/full.yaml", commands[0]
    )


def jobs_of(*names: str, root: Path = Path("runs")) -> dict[tuple[str, str], Job]:
    """The jobs of tables of the repository, by stage and run, with one seed."""
    plans = [Plan(load_study(EXPERIMENTS / f"tables/{name}.yaml"), RunFolders(root), seeds=[0]) for name in names]
    return {(job.stage, job.run_id): job for plan in plans for job in plan.jobs.values()}


def test_the_paper_s_minutes_come_back_for_its_own_models() -> None:
    jobs = jobs_of("table3")
    for model, column in (("llama-3.2-3b", 0), ("llama-3.1-8b", 1)):
        stages = [("reference", "reference"), ("score", "reference"), ("fit", "full"), ("fit", "ignoring-token"),
                  ("fit", "forgetting-token")]  # fmt: skip
        expected = [(36, 47, 205, 166, 187), (52, 73, 347, 282, 311)][column]
        minutes = [paper_minutes(jobs[stage, f"table3/{model}/{name}"]) for stage, name in stages]
        assert minutes == pytest.approx(expected)


def test_smaller_corpora_take_less() -> None:
    jobs = jobs_of("table3", "corpus-size")
    whole, small = (
        paper_minutes(jobs["fit", f"{folder}/full"])
        for folder in ("table3/llama-3.2-3b", "corpus-size/llama-3.2-3b-10k")
    )
    assert whole is not None
    assert small == pytest.approx(whole / 5)
    assert paper_minutes(jobs["score", "corpus-size/llama-3.2-3b-10k/reference"]) == pytest.approx(47 / 5)


def test_the_estimate_takes_the_speed_of_what_is_done(tmp_path: Path) -> None:
    jobs = [job for job in jobs_of("table11", root=tmp_path).values() if "3B" in job.config["model"]["backbone"]]
    assert estimate(jobs, []).endswith(
        "About 11 hours one after another on four L40S, by Table 11's fractions; not counted: prepare."
    )
    write_cost(tmp_path / "table3/llama-3.2-3b/reference/seed-0", "fit", 72)  # half the paper's speed
    done = [job for job in jobs if job.stage == "reference"]
    left = [job for job in jobs if job.stage not in ("prepare", "reference")]
    later = estimate(left, done)
    assert later == "Left: 1 score, 3 fit. About 20 hours one after another at the speed of 1 finished stages here."
    assert estimate([], jobs) == "Nothing is left."


def test_what_the_paper_did_not_time_takes_the_mean_of_its_kind_here(tmp_path: Path) -> None:
    plan = Plan(load_study(EXPERIMENTS / "tables/lab.yaml"), RunFolders(tmp_path), seeds=[0, 1, 2, 3])
    first, *left = [job for job in plan.jobs.values() if job.stage == "fit" and job.run_id == "lab/full"]
    assert estimate(left, []) == "Left: 3 fit."
    write_cost(first.folder, "fit", 4)
    said = estimate(left, [first])
    assert said == "Left: 3 fit. About 12 minutes one after another at the speed of 1 finished stages here."


@pytest.mark.parametrize(
    ("objective", "positive_fraction", "expected"),
    [
        ("MeanNLL", "all", False),
        ("MeanNLL", 0.7, True),
        ({"class_path": "MeanNLL"}, "all", False),
        ("mine.Objective", "all", True),
        ({"class_path": "forgetting.method.online.OnlineForgetting", "init_args": {"t_max": 1.0}}, "all", False),
        ({"class_path": "MeanNLL", "init_args": {"positive": {"class_path": "Power"}}}, "all", False),
        ({"class_path": "MeanNLL", "init_args": {"positive": "EntropyAdaptive"}}, "all", False),
        ({"class_path": "MeanNLL", "init_args": {"positive": {"class_path": "TokenNPO"}}}, "all", True),
        ({"class_path": "MeanNLL", "init_args": {"positive": "forgetting.method.terms.WeightedByQ"}}, "all", True),
        ({"class_path": "MeanNLL", "init_args": {"positive": {"class_path": "mine.Term"}}}, "all", True),
    ],
)
def test_a_store_is_made_for_runs_that_read_it(objective, positive_fraction, expected):
    config = {"model": {"objective": objective}, "data": {"positive_fraction": positive_fraction}}
    assert needs_store(config) == expected
