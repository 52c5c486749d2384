"""The command `lab` on worlds that are made in a second, and what it refuses."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from lab_worlds import SMALL

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.lab_command import experiments_folder, lab_command, write_study

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
OVERLAY = """
model: {lora: {rank: 4}}
data: {corpus: {num_train: 96, num_reference: 48, num_validation: 24}}
"""


@pytest.mark.slow
def test_two_small_worlds_end_to_end_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("forgetting.lab.world.World", lambda seed: dataclasses.replace(SMALL, seed=seed))
    shutil.copytree(EXPERIMENTS / "lab", "experiments/lab")
    study = yaml.safe_load((EXPERIMENTS / "tables/lab.yaml").read_text())
    (group,) = study["groups"]
    kept = ["Base", "Ignoring (token-level), ρ 0.7", "Forgetting (token-level), ρ 0.7"]
    group["rows"] = [row for row in group["rows"] if row["name"] in kept]
    group["compare"] = [pair for pair in group["compare"] if set(pair) <= set(kept)]
    Path("experiments/tables").mkdir()
    Path("experiments/tables/lab.yaml").write_text(yaml.safe_dump(study | {"overlays": ["small.yaml"]}))
    Path("small.yaml").write_text(OVERLAY)

    main(["lab", "--seeds", "2", "--first-seed", "7"])
    out = capsys.readouterr().out
    assert "| Forgetting (token-level), ρ 0.7 | 2 repeats |" in out
    assert "| Base                            | 2 repeats |" in out
    assert "of 2" in out
    assert "Repeated over world-7, world-8." in out
    assert "Missing" not in out
    for seed in (7, 8):
        assert Path(f"runs/lab/forgetting-token@small+world-{seed}/seed-{seed}/adapter").is_dir()
        assert Path(f"runs/lab/reference@small+world-{seed}/seed-{seed}/scores/manifest.json").is_file()

    files = {path: path.stat().st_mtime_ns for path in Path().rglob("*.safetensors")}
    main(["lab", "--seeds", "2", "--first-seed", "7"])
    assert capsys.readouterr().out == out
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*.safetensors")} == files
    main(["table", "runs/lab.yaml"])
    table = capsys.readouterr().out
    assert table == out


def test_experiments_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (experiments_folder() / "lab/forgetting-token.yaml").is_file()
    for name in ("lab/reference.yaml", "tables/lab.yaml"):
        (tmp_path / "experiments" / name).parent.mkdir(parents=True)
        (tmp_path / "experiments" / name).touch()
    assert experiments_folder() == Path("experiments")


def test_missing_experiments_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("forgetting.lab_command.CONFIGS", tmp_path / "configs")
    with pytest.raises(UserError, match="The lab's experiments are neither in experiments"):
        experiments_folder()


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--first-seed", "-1"]])
def test_numbers_that_make_no_sense(option: list[str]) -> None:
    with pytest.raises(UserError, match="expected at least 1 and at least 0"):
        lab_command(option)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["lab", "--help"])
    assert exit.value.code == 0
    assert "--first-seed" in capsys.readouterr().out


def test_another_study_is_repeated_over_the_worlds(tmp_path):
    source, worlds = EXPERIMENTS / "tables" / "lab_epochs.yaml", [tmp_path / "7", tmp_path / "8"]
    file = write_study(source, EXPERIMENTS, worlds, tmp_path / "study.yaml")
    study = yaml.safe_load(file.read_text())
    assert study["groups"] == yaml.safe_load(source.read_text())["groups"]
    assert [repeat["overlay"] for repeat in study["repeats"]] == [
        f"{world}/world-{world.name}.yaml" for world in worlds
    ]
    random = yaml.safe_load(write_study(source, EXPERIMENTS, worlds, tmp_path / "random.yaml", "random").read_text())
    assert [(repeat["overlay"], repeat["suite"]) for repeat in random["repeats"]] == [
        (f"{world}/world-{world.name}-random.yaml", f"{world}/suite.yaml") for world in worlds
    ]


def test_an_unknown_noise_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="mixed.*dirty"):
        lab_command(["--noise", "loud"])
