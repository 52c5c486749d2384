"""The contracts of pyproject.toml hold, and a room that reaches upward is caught."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", LINT, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_no_room_knows_a_room_above_it() -> None:
    result = contracts(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("file", "line", "named"), [
    ("method/steps.py", "from forgetting.runs.run import Run", "forgetting.method.steps -> forgetting.runs.run"),
    ("evaluation/suite.py", "from forgetting.method import store", "forgetting.evaluation.suite -> forgetting.method"),
    ("lab/world.py", "import forgetting.corpus.pool", "forgetting.lab.world -> forgetting.corpus.pool"),
])  # fmt: skip
def test_an_import_that_runs_upward_is_caught(tmp_path: Path, file: str, line: str, named: str) -> None:
    shutil.copytree(ROOT / "forgetting", tmp_path / "forgetting", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "forgetting" / file
    path.write_text(f"{path.read_text()}\n{line}  # noqa\n")
    result = contracts(tmp_path)
    assert result.returncode == 1
    assert named in result.stdout
