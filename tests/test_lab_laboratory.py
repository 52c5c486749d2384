"""The lab on a world that is made in a second, through the real command line."""

import io
from pathlib import Path

import pytest
from lab_worlds import SMALL
from rich.console import Console

from forgetting.artifacts import read_json
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.lab.command import lab_command, show
from forgetting.lab.comparison import ROWS, Comparison
from forgetting.lab.laboratory import Laboratory, experiments_folder
from forgetting.lab.stages import Stages, output_in_file

FEW = ("forgetting-token",)
OPTIONS = [
    "--data.corpus.num_train=96",
    "--data.corpus.num_reference=48",
    "--data.corpus.num_validation=24",
    "--model.lora.rank=4",
]


@pytest.mark.slow
def test_a_small_world_end_to_end_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = [row for row in ROWS if row.experiment in FEW]
    laboratory = Laboratory(rows=rows, options=OPTIONS)
    stages = Stages(laboratory.stages_per_world, Console(file=io.StringIO()))
    with output_in_file(Path("lab.log")):
        outcome = laboratory.run(SMALL, stages)
    assert stages.done == stages.total == 7
    assert set(outcome.scores) == {"base", *FEW}
    assert all(
        list(scores) == ["Truthful", "Boolean", "Logic", "Lingual", "Math", "AVG"] for scores in outcome.scores.values()
    )
    assert (
        outcome.scores["base"]["AVG"] == read_json(Path("runs/base/folder=worlds--7--base/results.lab.json"))["average"]
    )
    (run,) = Path("runs/lab").glob("forgetting-token@*/seed-7")
    assert outcome.scores["forgetting-token"]["AVG"] == read_json(run / "results.lab.json")["average"]
    (reference,) = Path("runs/lab").glob("reference@*/seed-7")
    assert (reference / "scores" / "manifest.json").is_file()

    detection = outcome.detection
    assert 0.2 < detection.noise_fraction < 0.6
    negative = (1 - 0.7) * detection.num_tokens
    assert detection.precision * negative == pytest.approx(
        detection.recall * detection.noise_fraction * detection.num_tokens, abs=1
    )

    text = io.StringIO()
    show(Comparison([outcome]).tables(), Console(file=text, width=120))
    assert "Forgetting (token-level)" in text.getvalue()

    files = {path: path.stat().st_mtime_ns for path in Path().rglob("*.safetensors")}
    with output_in_file(Path("lab.log")):
        again = Laboratory(rows=rows, options=OPTIONS).run(SMALL, Stages(7, Console(file=io.StringIO())))
    assert again == outcome
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*.safetensors")} == files


def test_experiments_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert (experiments_folder() / "forgetting-token.yaml").is_file()
    own = tmp_path / "experiments" / "lab"
    own.mkdir(parents=True)
    (own / "reference.yaml").touch()
    assert experiments_folder() == Path("experiments/lab")


def test_missing_experiments_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("forgetting.lab.laboratory.CONFIGS", tmp_path / "configs")
    with pytest.raises(UserError, match="The lab's experiments are neither in experiments/lab"):
        experiments_folder()


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--first-seed", "-1"]])
def test_numbers_that_make_no_sense(option: list[str]):
    with pytest.raises(UserError, match="expected at least 1 and at least 0"):
        lab_command(option)


def test_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        main(["lab", "--help"])
    assert exit.value.code == 0
    assert "--first-seed" in capsys.readouterr().out
