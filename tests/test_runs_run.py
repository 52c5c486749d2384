"""Names of runs and references, from files and overrides."""

import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import capture_parser

from forgetting.arguments import base_files, flat
from forgetting.cli import COMMANDS, TRAINER_COMMANDS, build_cli, main, usage
from forgetting.errors import UserError
from forgetting.runs.naming import Naming
from forgetting.runs.run import Run, changes, computed, experiment_id, variant, with_variant

EXPERIMENT = """
model: {objective: {class_path: Forgetting, init_args: {t_min: 1.0e-4, t_max: 0.25}}}
data: {positive_fraction: 0.7}
"""


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "experiments" / "table3" / "small"
    folder.mkdir(parents=True)
    (folder / "forgetting-token.yaml").write_text(EXPERIMENT)
    (folder / "reference.yaml").write_text("data: {split: reference}\n")
    (folder / "elsewhere.yaml").write_text(EXPERIMENT + "  \n" + "seed_everything: 3\n")
    (tmp_path / "file-order.yaml").write_text("data: {shuffle: false}\n")
    (tmp_path / "machine.yaml").write_text("trainer: {devices: 4}\ndata: {micro_batch_tokens: 16384}\n")
    monkeypatch.chdir(tmp_path)
    return folder


def naming(*options: str, file: str = "experiments/table3/small/forgetting-token.yaml") -> Naming:
    arguments = ["fit", "--config", file, *options]
    return Naming(capture_parser(lambda: build_cli(arguments)), arguments)


def test_a_run_is_called_as_its_file(experiments):
    names = naming()
    assert names.run_id == "table3/small/forgetting-token"
    assert names.reference_id == "table3/small/reference"


@pytest.mark.parametrize(
    ("options", "run", "reference"),
    [
        (["--config", "machine.yaml"], "", ""),
        (["--config", "file-order.yaml"], "@file-order", "@file-order"),
        (["--data.positive_fraction", "0.5"], "@positive_fraction=0.5", ""),
        (["--data.positive_fraction=0.5"], "@positive_fraction=0.5", ""),
        (["--model.objective.t_max", "0.35"], "@t_max=0.35", ""),
        (["--model.learning_rate", "0.001"], "@learning_rate=0.001", "@learning_rate=0.001"),
        (
            ["--config", "file-order.yaml", "--data.positive_fraction", "0.5"],
            "@file-order+positive_fraction=0.5",
            "@file-order",
        ),
        (["--seed_everything", "7"], "", ""),
        (["--trainer.max_steps", "2"], "@max_steps=2", ""),
        (["--trainer.devices", "2", "--data.num_workers", "2"], "", ""),
        (["--data.positive_fraction", "0.7"], "", ""),  # what the file says anyway
    ],
)  # fmt: skip
def test_what_changes_the_computation_changes_the_name(experiments, options, run, reference):
    names = naming(*options)
    assert names.run_id == "table3/small/forgetting-token" + run
    assert names.reference_id == "table3/small/reference" + reference


def test_full_tokens_and_references_need_no_reference(experiments):
    assert naming("--data.positive_fraction", "all").reference_id is None
    assert naming(file="experiments/table3/small/reference.yaml").reference_id is None


def test_a_reference_does_not_depend_on_the_method(experiments):
    names = naming("--data.positive_fraction", "0.5", file="experiments/table3/small/reference.yaml")
    assert names.run_id == "table3/small/reference"


def test_an_explicit_reference_is_taken_as_it_is(experiments):
    names = naming("--data.reference", "table3/large/reference", "--model.learning_rate", "0.001")
    assert names.reference_id == "table3/large/reference"


def test_the_command_that_makes_the_reference_takes_what_concerns_it(experiments):
    names = naming("--config", "file-order.yaml", "--data.positive_fraction", "0.5", "--model.learning_rate", "0.001")
    assert names.command_for_reference("score") == (
        "python -m forgetting score --config experiments/table3/small/reference.yaml --config file-order.yaml "
        "--model.learning_rate=0.001"
    )


def test_numbers_keep_their_sign_in_a_name(experiments):
    assert naming("--data.threshold=-0.5").run_id.endswith("@threshold=-0.5")
    assert naming("--data.threshold=1e38").run_id.endswith("@threshold=1e38")


def test_experiment_ids_follow_the_folder():
    assert experiment_id(Path("/a/experiments/table9/x/y.yaml")) == "table9/x/y"
    assert experiment_id(Path("mine.yaml")) == "mine"


def test_a_long_variant_is_told_apart_by_its_hash():
    names = {variant([], {f"model.some_rather_long_key_{i}": value for i in range(9)}) for value in (1, 2)}
    assert len(names) == 2
    assert all(len(name) <= 100 for name in names)
    assert with_variant("a@b", "c") == "a@b+c"
    assert with_variant("a", "") == "a"


def test_changes_names_both_added_and_removed_keys():
    assert changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == {"a.c": None, "a.d": 3}
    assert flat({"a": {}, "b": [1]}) == {"a": {}, "b": [1]}


def test_where_a_run_is_computed_is_not_what_is_computed():
    config = {
        "model": {"backbone": "x", "compile": False, "seed": 0}, "trainer": {"max_epochs": 1, "devices": 1},
        "data": {"split": "train", "micro_batch_tokens": 1, "positive_fraction": 0.7},
    }  # fmt: skip
    other = {
        "model": {"backbone": "x", "compile": True, "seed": 1}, "trainer": {"max_epochs": 1, "devices": 8},
        "data": {"split": "train", "micro_batch_tokens": 9, "positive_fraction": 0.7},
    }  # fmt: skip
    assert computed(config) == computed(other)
    assert computed(config) != computed({**config, "trainer": {"max_epochs": 2}})


def test_a_run_knows_its_places():
    run = Run("a/b", 1, {}, Path("runs"))
    assert run.scores == Path("runs/a/b/seed-1/scores")


def test_help_lists_every_command():
    text = usage()
    for name in [*TRAINER_COMMANDS, *COMMANDS]:
        assert f"\n  {name} " in text
    shown = subprocess.run([sys.executable, "-m", "forgetting", "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == text


def test_errors_on_the_command_line_are_one_message_and_status_2(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "forgetting", "fit", "--config", "nothing.yaml"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert shown.returncode == 2
    assert shown.stderr == "error: There is no configuration file nothing.yaml.\n"


def test_wrong_commands_bases_and_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no command 'train'"):
        main(["train"])
    (tmp_path / "e.yaml").write_text("base: nowhere\n")
    with pytest.raises(UserError, match="no base configuration 'nowhere'.*there are: .*paper"):
        base_files(["fit", "--config", str(tmp_path / "e.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match="not valid YAML"):
        base_files(["fit", f"--config={tmp_path / 'broken.yaml'}"])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="a YAML mapping was expected"):
        base_files(["fit", "--config", str(tmp_path / "list.yaml")])


def test_a_missing_base_configuration_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("forgetting.arguments.CONFIGS", tmp_path)
    with pytest.raises(UserError, match=r"paper.yaml is missing. Install the package again"):
        base_files(["fit"])
