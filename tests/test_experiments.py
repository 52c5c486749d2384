"""Every experiment and table of the repository parses and is used; the numbers of the paper agree with one another."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import capture_parser

from forgetting.arguments import base_files
from forgetting.cli import build_cli, main
from forgetting.errors import UserError
from forgetting.evaluation.suite import load_suite, suite_path
from forgetting.planting.probe import overlay
from forgetting.runs.naming import Naming
from forgetting.studies.jobs import Job
from forgetting.studies.plan import Plan, merged_jobs
from forgetting.studies.results import RunFolders
from forgetting.studies.spec import Overhead, Stated, Study, Total
from forgetting.studies.spec_file import load_study

REPOSITORY = Path(__file__).parent.parent
EXPERIMENTS = REPOSITORY / "experiments"
TABLES = {path.stem: load_study(path) for path in sorted((EXPERIMENTS / "tables").glob("*.yaml"))}
RUN_FILES = sorted(
    path
    for path in EXPERIMENTS.rglob("*.yaml")
    if path.relative_to(EXPERIMENTS).parts[0] not in ("tables", "profiles", "sweeps")
)
OVERLAYS = [
    *(REPOSITORY / f"configs/{name}.yaml" for name in ("file-order", "published")),
    *sorted((REPOSITORY / "configs/machines").glob("*.yaml")),
]
PAPER = [path for path in RUN_FILES if path.relative_to(EXPERIMENTS).parts[0] not in ("lab", "smollm2")]


def experiment_name(path: Path) -> str:
    return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()


@cache
def _parser(bases: tuple[Path, ...]) -> Any:
    file = next(path for path in RUN_FILES if tuple(base_files(["--config", str(path)])) == bases)
    return capture_parser(lambda: build_cli(["fit", "--config", str(file)]))


def parsed(*files: Path) -> tuple[Any, Any]:
    """The parser and the configuration of an experiment with overlays."""
    arguments = [part for file in files for part in ("--config", str(file))]
    parser = _parser(tuple(base_files(arguments)))
    return parser, parser.parse_args(["fit", *arguments])


def keys(content: Any) -> set[str]:
    if isinstance(content, dict):
        return set(content) | {key for value in content.values() for key in keys(value)}
    return {key for value in content for key in keys(value)} if isinstance(content, list) else set()


def test_the_number_of_experiments() -> None:
    counts = Counter(path.relative_to(EXPERIMENTS).parts[0] for path in PAPER)
    assert counts == {
        "table3": 18, "table5": 4, "table6": 3, "table8": 8, "table9": 15, "table10": 5, "figure1a": 10, "figure1b": 5,
        "threshold": 1, "corpus-size": 8,
    }  # fmt: skip
    others = Counter(path.parent.name for path in RUN_FILES if path not in PAPER)
    assert others == {"lab": 4, "smollm2": 4}


@pytest.mark.parametrize("path", RUN_FILES, ids=experiment_name)
def test_an_experiment_parses_dumps_and_parses_again(path: Path) -> None:
    parser, config = parsed(path)
    text = parser.dump(config, skip_none=False, skip_validation=True)
    again = parser.parse_string(text)
    assert parser.dump(again, skip_none=False, skip_validation=True) == text
    assert config.fit.data.batch_size == (8 if path.parent.name == "smollm2" else 24)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_parses_over_an_experiment(overlay: Path) -> None:
    parser, config = parsed(EXPERIMENTS / "table3/llama-3.2-3b/forgetting-token.yaml", overlay)
    assert parser.dump(config, skip_validation=True)


def test_the_sweep_of_table_9_runs_its_grid() -> None:
    sweep = yaml.safe_load((EXPERIMENTS / "sweeps/table9.yaml").read_text())
    grid = (
        {row.at["t_min"] for _, row in TABLES["table9"].rows()},
        {row.at["t_max"] for _, row in TABLES["table9"].rows()},
    )
    assert [set(parameter["values"]) for parameter in sweep["parameters"].values()] == list(grid)
    command = sweep["command"][sweep["command"].index("fit") : -1]  # from `fit` up to ${args}
    arguments = [*command, *(f"--{name}={parameter['values'][0]}" for name, parameter in sweep["parameters"].items())]
    config = _parser(tuple(base_files([]))).parse_args(
        [str(REPOSITORY / part) if part.startswith("experiments/") else part for part in arguments]
    )
    chosen = config.fit.model.objective.init_args
    assert (chosen.t_min, chosen.t_max, config.fit.run.wandb) == (1e-5, 0.15, {})


@pytest.mark.parametrize("spec", [spec for spec in TABLES.values() if spec.suite], ids=lambda spec: spec.name)
def test_a_table_s_columns_are_its_suite_s(spec: Study) -> None:
    assert spec.suite is not None
    if suite_path(spec.suite).is_file() and spec.column_names != ("AVG",):  # the lab's is there once it has run
        assert (*load_suite(spec.suite).columns, "AVG") == tuple(c.name for c in spec.columns if c.kind == "suite")


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("data:\n  rho: 0.7\n")
    for command in ("fit", "prepare"):
        with pytest.raises(UserError, match=r"does not accept option 'data.rho'"):
            main([command, "--config", str(file)])


@pytest.mark.parametrize("path", [*RUN_FILES, *OVERLAYS], ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_configuration_includes_another_by_config(path: Path) -> None:
    assert "config" not in keys(yaml.safe_load(path.read_text()))  # it would be merged shallowly, without a word


@cache
def jobs() -> list[Job]:
    """The jobs of every study of the repository, with one seed."""
    return list(merged_jobs(Plan(spec, RunFolders(), seeds=[0]) for spec in TABLES.values()).values())


def test_every_cell_has_a_run_and_every_run_a_cell() -> None:
    used = {job.run_id.split("@")[0] for job in jobs() if job.stage in ("reference", "fit")}
    assert used == {experiment_name(path) for path in RUN_FILES}


@pytest.mark.parametrize("overridden", [job for job in jobs() if job.stage == "fit" and "@" in job.run_id],
                         ids=lambda job: f"{job.stage}-{job.run_id}")  # fmt: skip
def test_a_row_with_settings_of_its_own_parses(overridden: Job, tmp_path: Path) -> None:
    arguments = list(overridden.arguments)
    parser = _parser(tuple(base_files(arguments)))
    if overridden.run_id.startswith("smollm2/"):  # its rows are laid over the splits of a probe
        file = tmp_path / "probe.yaml"
        file.write_text(yaml.safe_dump(overlay(tmp_path, has_held_out=True)))
        arguments[3:3] = ["--config", str(file)]
    parser.parse_args(["fit", *arguments[1:]])


@pytest.mark.parametrize("path", PAPER, ids=experiment_name)
def test_the_header_names_table_and_row(path: Path) -> None:
    name = experiment_name(path)
    header = path.read_text().splitlines()[0]
    cells = [
        f"# {spec.title} · {group.name} · {row.name}."
        for spec in TABLES.values()
        for group, row in spec.rows()
        if getattr(row.origin, "experiment", None) == name
    ]
    if path.stem == "reference":
        assert re.fullmatch(
            rf"# ({'|'.join(re.escape(s.title) for s in TABLES.values())}) · .+ · reference model\.", header
        )
    else:
        assert header in cells


def test_a_point_of_two_tables_is_one_file() -> None:
    contents = [yaml.safe_dump(yaml.safe_load(path.read_text()) | {"folder": _store(path)}) for path in PAPER]
    repeated = [text for text, number in Counter(contents).items() if number > 1]
    assert not repeated


def _store(path: Path) -> str:
    return Naming(["fit", "--config", str(path)]).reference_id


# --- the paper's numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec for spec in TABLES.values() if spec.suite], ids=lambda spec: spec.name)
def test_the_averages_of_the_paper_are_the_means_of_its_columns(spec: Study) -> None:
    for _, row in spec.rows():
        *columns, average = row.paper
        if average is None or not columns or None in columns:
            continue
        mean = sum(value.mean for value in columns if value) / len(columns)
        assert mean == pytest.approx(average.mean, abs=0.0051), row.name


def test_totals_and_overheads_of_table_11() -> None:
    spec = TABLES["table11"]
    paper = {row.name: [value.mean for value in row.paper if value] for _, row in spec.rows()}
    for _, row in spec.rows():
        if isinstance(row.origin, Total):
            assert paper[row.name] == [sum(parts) for parts in zip(*map(paper.get, row.origin.rows), strict=True)]
        if isinstance(row.origin, Overhead):
            ratios = zip(paper[row.origin.row], paper[row.origin.over], strict=True)
            assert paper[row.name] == pytest.approx([100 * (one / other - 1) for one, other in ratios], abs=0.006)


def test_percentages_of_table_1() -> None:
    rows = [[value.mean for value in row.paper if value] for _, row in TABLES["table1"].rows()]
    for count, share, total in [(0, 1, 50_000), (2, 3, 10_000)]:
        assert sum(row[count] for row in rows) == total
        assert [row[share] for row in rows] == pytest.approx([100 * row[count] / total for row in rows], abs=0.0051)


def test_the_standard_deviation_of_table_9_by_t_max() -> None:
    averages: dict[float, list[float]] = {}
    for _, row in TABLES["table9"].rows():
        averages.setdefault(row.at["t_max"], []).append(row.paper[-1].mean)  # type: ignore[union-attr]
    means = {t_max: round(sum(values) / 4, 2) for t_max, values in averages.items()}
    assert means == {0.15: 51.44, 0.25: 52.07, 0.35: 51.66, 0.45: 51.27}


def holds(spec: Study, stated: Stated) -> bool:
    """Whether what the text states agrees with the table, as far as both are printed."""
    group = next(group for group in spec.groups if group.name == stated.group)
    column = spec.column_names.index(stated.column)
    value = group.row(stated.row).paper[column]
    assert value is not None
    expected = value.mean
    if stated.over is not None:
        over = group.row(stated.over).paper[column]
        assert over is not None
        expected -= over.mean
    return abs(expected - stated.value) < 0.011


@pytest.mark.parametrize(
    ("spec", "stated"),
    [(spec, stated) for spec in TABLES.values() for stated in spec.stated],
    ids=lambda one: one.name if isinstance(one, Study) else f"{one.where}-{one.value}",
)
def test_what_the_text_states_holds_or_is_listed_as_an_erratum(spec: Study, stated: Stated) -> None:
    assert holds(spec, stated) == (stated.erratum is None)


def test_the_page_of_errata_lists_what_the_tables_note() -> None:
    page = " ".join((REPOSITORY / "docs/errata.md").read_text().split())
    footnotes = [note for spec in TABLES.values() for note in spec.footnotes()]
    assert len(footnotes) == 10
    assert [note for note in footnotes if " ".join(note.split()) not in page] == []


# --- the workflow ---------------------------------------------------------------------------------------------------


def plan(folder: Path, *arguments: str, repository: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Snakemake's dry run from `folder`."""
    pytest.importorskip("snakemake", reason="Snakemake is in the extra `experiments`")
    command = [sys.executable, "-m", "snakemake", "-s", str(repository / "experiments/Snakefile"), "-n", *arguments]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def dry_run(folder: Path, *arguments: str, repository: Path = REPOSITORY) -> tuple[Counter[str], str]:
    """Jobs a rule that Snakemake plans from `folder`, and what it said."""
    answer = plan(folder, *arguments, repository=repository)
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    table = said.split("Job stats:")[1].split("total")[0]
    return Counter({name: int(number) for name, number in re.findall(r"^(\S+) +(\d+)$", table, re.M)}), said


def test_table_3_is_3_references_3_stores_45_fits_and_48_evaluations(tmp_path: Path) -> None:
    counts, said = dry_run(tmp_path, "table3")
    assert counts["evaluate"] + counts["evaluate_base"] == 48
    assert counts == {
        "prepare": 3, "reference": 3, "score": 3, "fit": 45, "evaluate": 45, "evaluate_base": 3, "table3": 1,
    }  # fmt: skip
    assert re.search(
        r"Left: 3 prepare, 3 reference, 3 score, 45 fit, 45 evaluate, 3 evaluate_base\. About 1\d\d hours", said
    )


def test_tables_share_runs_references_and_stores(tmp_path: Path) -> None:
    together, _ = dry_run(tmp_path, "table3", "table9", "figure1a", "--config", "seeds=1")
    assert together["reference"] == together["score"] == 3
    assert together["fit"] == 15 + 15 + 10


def test_what_is_done_is_not_planned_again(tmp_path: Path) -> None:
    for stage, name in Plan(TABLES["table5"], RunFolders()).jobs:
        if stage not in ("prepare", "reference", "score"):
            continue
        file = tmp_path / f"runs/.done/{stage}/{name}.done"
        file.parent.mkdir(parents=True)
        file.touch()
    counts, _ = dry_run(tmp_path, "table5", "--config", "seeds=2")
    assert counts == {"fit": 6, "evaluate": 6, "evaluate_base": 1, "table5": 1}


def touch_all(folder: Path, said: str) -> None:
    """Everything that a dry run would make is there now."""
    for sentinel in re.findall(r"^ +output: (\S+\.done)$", said, re.M):
        (folder / sentinel).parent.mkdir(parents=True, exist_ok=True)
        (folder / sentinel).touch()


def test_what_is_computed_is_run_again_when_it_is_edited_and_where_it_is_computed_is_not(tmp_path: Path) -> None:
    for part in ("forgetting", "configs", "experiments"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    asked = ["table5", "lab_table10", "--config", "seeds=1", "machine=cpu"]
    again = lambda: dry_run(tmp_path, *asked, repository=tmp_path)  # noqa: E731
    touch_all(tmp_path, again()[1])
    tables = {"table5": 1, "lab_table10": 1}
    assert again()[0] == tables
    (tmp_path / "configs/machines/cpu.yaml").touch()
    assert again()[0] == tables
    (tmp_path / "configs/evaluation/main.yaml").touch()
    counts, said = again()
    assert counts == {**tables, "evaluate": 3, "evaluate_base": 1}
    touch_all(tmp_path, said)
    (tmp_path / "configs/lab.yaml").touch()  # the base of the lab's experiments alone
    counts, _ = again()
    assert counts == {**tables, "prepare": 1, "reference": 1, "score": 1, "fit": 7, "evaluate": 7}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=x", "seeds=x: a number of seeds, at least 1, or a list such as 0,5,7 is expected"),
        ("seeds=0", "seeds=0: a number of seeds, at least 1"),
        ("gpus=0", "gpus=0: the number of GPUs of one job, at least 1, is expected"),
        ("seed=3", "There is no setting seed. The settings are: study, seeds, variant"),
        ("machine=four-gpus", "four-gpus.yaml has 4 devices, a job has gpus=1: give --config gpus=4 too"),
        (
            "variant=theirs",
            "variant=theirs: there is no .*theirs.yaml. In .*configs: file-order, lab, paper, published",
        ),
        ("protocol=x", "protocol=x: one of corrected, published, token_stop is expected"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_message(tmp_path: Path, setting: str, message: str) -> None:
    answer = plan(tmp_path, "table5", "--config", setting)
    assert answer.returncode != 0
    said = answer.stdout + answer.stderr
    assert re.search(message, said), said
    assert "Traceback" not in said


def test_a_job_of_several_gpus_starts_a_process_on_each(tmp_path: Path) -> None:
    _, said = dry_run(tmp_path, "table5", "-p", "--config", "seeds=1", "gpus=4", "machine=four-gpus")
    for stage, number in (("fit", 4), ("score", 1)):
        started = rf"gpu\.py 4 \S+ -m torch\.distributed\.run --standalone --nproc_per_node 4 .* -m forgetting {stage} "
        assert len(re.findall(rf"Shell command: \S+ \S+{started}", said)) == number
    assert len(re.findall(r"gpu\.py 1 \S+ -m forgetting evaluate ", said)) == 4
    assert "torch.distributed" not in dry_run(tmp_path, "table5", "-p", "--config", "seeds=1")[1]


def test_more_seeds_are_run_when_a_table_is_there_already(tmp_path: Path) -> None:
    _, said = dry_run(tmp_path, "table5", "--config", "seeds=1")
    touch_all(tmp_path, said)
    (tmp_path / "runs/tables").mkdir()
    (tmp_path / "runs/tables/table5.md").touch()
    assert dry_run(tmp_path, "table5", "--config", "seeds=1")[0] == {"table5": 1}
    assert dry_run(tmp_path, "table5", "--config", "seeds=2")[0] == {"fit": 3, "evaluate": 3, "table5": 1}


def test_a_variant_has_sentinels_and_folders_of_its_own(tmp_path: Path) -> None:
    _, said = dry_run(tmp_path, "table5", "-p", "--config", "variant=file-order", "protocol=published", "seeds=1")
    assert "runs/table5/llama-2-13b/full@file-order/seed-0 --suite main --protocol published" in said
    assert "table5@file-order.published.md" in said


def test_a_protocol_that_another_study_lacks_is_no_hindrance(tmp_path: Path) -> None:
    suite = tmp_path / "worlds/100/suite.yaml"  # as `make lab` leaves it; every study is planned, the lab's too
    suite.parent.mkdir(parents=True)
    suite.write_text("name: w100\ncolumns: {T1: {tasks: [t1]}}\n", encoding="utf-8")
    assert dry_run(tmp_path, "table5", "--config", "protocol=published", "seeds=1")[0]["evaluate"] == 3


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_a_profile_is_valid(tmp_path: Path, profile: str) -> None:
    if profile == "slurm":
        pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin is in the extra `experiments`")
    counts, _ = dry_run(tmp_path, "table5", "--profile", str(EXPERIMENTS / "profiles" / profile))
    assert counts["fit"] == 9


# --- the launcher -----------------------------------------------------------------------------------------------------


def launcher(*command: str, gpus: str, number: int = 1, **variables: str) -> subprocess.Popen[str]:
    """A command on GPUs of its own, where `gpus` are those of the machine."""
    start = [sys.executable, str(EXPERIMENTS / "gpu.py"), str(number), *command]
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": gpus, **variables}
    return subprocess.Popen(start, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


SEEN = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(1)"


def test_the_gpu_launcher_runs_the_command_where_there_is_no_gpu(tmp_path: Path) -> None:
    job = launcher("/bin/echo", "ran", gpus="", TMPDIR=str(tmp_path))
    assert job.communicate(timeout=20)[0] == "ran\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job_id", [None, "1234"], ids=["local", "one SLURM job"])
def test_the_gpu_launcher_gives_each_job_gpus_of_its_own(tmp_path: Path, job_id: str | None) -> None:
    variables = {"TMPDIR": str(tmp_path)} | ({"SLURM_JOB_ID": job_id} if job_id else {})
    command = (sys.executable, "-c", SEEN)
    jobs = [launcher(*command, gpus="0,1,2", number=number, **variables) for number in (2, 1)]
    used = [gpu for job in jobs for gpu in job.communicate(timeout=20)[0].strip().split(",")]
    assert sorted(used) == ["0", "1", "2"]


def test_jobs_of_slurm_do_not_wait_for_each_other(tmp_path: Path) -> None:
    # Each sees its own GPU as number 0.
    command = (sys.executable, "-c", SEEN.replace("1)", "30)"))
    jobs = [launcher(*command, gpus="0", TMPDIR=str(tmp_path), SLURM_JOB_ID=job_id) for job_id in ("1", "2")]
    assert [job.stdout.readline() for job in jobs if job.stdout] == ["0\n", "0\n"]
    for job in jobs:
        job.kill()
        job.communicate()


def test_more_gpus_than_there_are_is_one_message(tmp_path: Path) -> None:
    job = launcher("/bin/echo", gpus="0", number=4, TMPDIR=str(tmp_path))
    assert job.communicate(timeout=20)[1] == "error: 4 GPUs are wanted for one job, this machine has 1 for it.\n"
    assert job.returncode == 1


@pytest.mark.parametrize("planted", ["link", "open", "file"])
def test_a_folder_of_locks_that_another_may_have_made_is_refused(tmp_path: Path, planted: str) -> None:
    assert launcher("/bin/echo", gpus="0", TMPDIR=str(tmp_path)).communicate(timeout=20) == ("\n", "")
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder)
    if planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    job = launcher("/bin/true", gpus="0", TMPDIR=str(tmp_path))
    assert "is not a folder of yours alone" in job.communicate(timeout=20)[1]
    assert job.returncode == 1
