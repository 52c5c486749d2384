"""A run's folder, and the command line around it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import capture_parser

from forgetting.arguments import base_files, flat
from forgetting.cli import COMMANDS, TRAINER_COMMANDS, build_cli, main, usage
from forgetting.errors import UserError
from forgetting.runs.run import PRECISION, Run, changes, computed, is_neutral


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
    for broken in ("a: [\n", "?"):
        (tmp_path / "broken.yaml").write_text(broken)
        with pytest.raises(UserError, match="not valid YAML"):
            base_files(["fit", f"--config={tmp_path / 'broken.yaml'}"])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="a YAML mapping was expected"):
        base_files(["fit", "--config", str(tmp_path / "list.yaml")])


def test_a_missing_base_configuration_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("forgetting.arguments.CONFIGS", tmp_path)
    with pytest.raises(UserError, match=r"paper.yaml is missing. Install the package again"):
        base_files(["fit"])


def test_what_is_neutral_for_the_name_is_left_out_of_the_hash(tmp_path):
    """One list says both. The precision is the exception: in the hash, and not in the name."""
    (tmp_path / "experiments").mkdir()
    file = tmp_path / "experiments/e.yaml"
    file.write_text("data: {positive_fraction: 0.7}\n")
    arguments = ["fit", "--config", str(file)]
    parser = capture_parser(lambda: build_cli(arguments))
    config = yaml.safe_load(parser.dump(parser.parse_args(arguments), skip_unset=False, skip_validation=True))["fit"]
    for group in ("model", "data", "trainer"):
        for name in config[group]:
            key = f"{group}.{name}"
            changed = {**config, group: {**config[group], name: "another"}}
            assert is_neutral(key) == (computed(changed) == computed(config)) or key == PRECISION, key
    assert is_neutral(PRECISION)
    assert not is_neutral("model.learning_rate")
