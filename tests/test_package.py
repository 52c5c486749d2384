"""A wheel runs alone: its configurations and experiments travel with it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SHOW = (
    "import forgetting.paths as p; from forgetting.arguments import base_files;"
    "print(p.__file__, *base_files(['fit']));"
    "from forgetting.lab_command import experiments_folder; print(experiments_folder())"
)
LAB = """
import sys

from forgetting.cli import main
from forgetting.lab import world
from lab_worlds import SMALL

assert world.__file__.startswith(sys.argv[1])  # the wheel's own

world.World = lambda seed: SMALL
study = []
from forgetting.studies import command
command.table_command = lambda arguments: study.extend(arguments)
main(["lab", "--first-seed", "7"])
assert study[:2] == ["runs/lab.yaml", "--run"], study
main(["fit", "--config", "experiments/lab/reference.yaml", "--config", "worlds/7/world-7.yaml", "--model.lora.rank=4",
      "--data.corpus.num_train=48", "--data.corpus.num_reference=48", "--data.corpus.num_validation=24"])
"""
"""`lab` writes a small world and its study; then the first job of the study is run."""

PROGRAM = (
    "import sys; from importlib.metadata import entry_points;"
    "(program,) = entry_points(group='console_scripts', name='forgetting'); program.load()()"
)
"""What the script `forgetting` does that pip, pipx and uvx make of the wheel."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the built wheel, and no repository around it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Python with the wheel's package alone, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *([path] if path else [])])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )


def test_a_wheel_installed_elsewhere_finds_its_configurations(site: Path, tmp_path: Path) -> None:
    code, base, lab = run(site, tmp_path, "-c", SHOW).stdout.split()
    assert Path(lab) == site / "forgetting" / "experiments"
    assert Path(code).is_relative_to(site)
    assert Path(base) == site / "forgetting" / "configs" / "paper.yaml"
    for name in ("configs", "experiments"):
        shipped = {path.relative_to(site / "forgetting").as_posix() for path in (site / "forgetting" / name).rglob("*")}
        in_repository = subprocess.run(["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True, check=False)
        assert set(in_repository.stdout.split()) <= shipped  # none outside of a checkout
        assert f"{name}/lab.yaml" in shipped or f"{name}/tables/lab.yaml" in shipped


def test_a_wheel_has_the_program_and_says_its_help_and_version(site: Path, tmp_path: Path) -> None:
    (information,) = site.glob("*.dist-info")
    version = information.name.removeprefix("forgetting-").removesuffix(".dist-info")
    assert run(site, tmp_path, "-c", PROGRAM, "--version").stdout == f"forgetting {version}\n"
    assert "  lab  " in run(site, tmp_path, "-m", "forgetting", "--help").stdout
    assert "--data.positive_fraction" in run(site, tmp_path, "-m", "forgetting", "fit", "--help").stdout


@pytest.mark.slow
def test_a_wheel_prints_the_configuration_of_its_own_experiments(site: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--config", "experiments/lab/reference.yaml", "--print_config"]
    shown = run(site, tmp_path, "-c", PROGRAM, *arguments)
    assert shown.returncode == 0, shown.stderr
    config = yaml.safe_load(shown.stdout)
    assert config["data"]["split"] == "reference"
    assert config["base"] == "lab"
    assert config["data"]["corpus"]["num_train"] != 50_000  # the paper's: the base `lab` is the wheel's too
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_prints_a_table_of_the_paper(site: Path, tmp_path: Path) -> None:
    """The paper's studies are in the wheel under the paths that the pages use, and name its own experiments."""
    shown = run(site, tmp_path, "-m", "forgetting", "table", "experiments/tables/table3.yaml")
    assert shown.returncode == 0, shown.stderr
    assert "LLaMA-3.2-1B" in shown.stdout
    missing = run(site, tmp_path, "-m", "forgetting", "table", "experiments/tables/none.yaml")
    assert missing.returncode == 2
    assert "There is no study experiments/tables/none.yaml" in missing.stderr


@pytest.mark.slow
def test_a_wheel_starts_the_lab(site: Path, tmp_path: Path) -> None:
    shown = run(site, tmp_path, "-c", LAB, str(site), path=str(ROOT / "tests"))
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "worlds/7/suite.yaml").is_file()
    assert len(list((tmp_path / "runs/lab").rglob("adapter"))) == 1


def test_a_package_without_configurations_says_so(tmp_path: Path) -> None:
    (tmp_path / "forgetting").mkdir()
    for name in ("__init__.py", "paths.py", "errors.py"):
        (tmp_path / "forgetting" / name).write_bytes((ROOT / "forgetting" / name).read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    show = subprocess.run(
        [sys.executable, "-c", "import forgetting.paths"], cwd=tmp_path, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert show.returncode != 0
    assert "The installation is incomplete" in show.stderr
