"""The base configuration travels with the package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOW = (
    "import forgetting.paths as p; from forgetting.arguments import base_files;"
    "print(p.__file__, *base_files(['fit']));"
    "from forgetting.lab_command import experiments_folder; print(experiments_folder())"
)


def test_a_wheel_installed_elsewhere_finds_its_configurations(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    show = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    code, base, lab = show.stdout.split()
    assert Path(lab) == tmp_path / "site" / "forgetting" / "experiments"
    assert Path(code).is_relative_to(tmp_path)
    assert Path(base) == tmp_path / "site" / "forgetting" / "configs" / "paper.yaml"
    names = {
        path.relative_to(tmp_path / "site" / "forgetting").as_posix() for path in Path(base).parent.rglob("*.yaml")
    }
    assert {"configs/lab.yaml", "configs/file-order.yaml", "configs/evaluation/main.yaml"} <= names


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
