"""What the pages say of the code is so: errors, methods, estimates, the notebook, the site's table of contents."""

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.cli import COMMANDS, TRAINER_COMMANDS
from forgetting.method import objectives, online, scores, terms
from forgetting.settings_help import CLASSES, settings

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
NOTEBOOK = json.loads((DOCS / "forgetting.ipynb").read_text(encoding="utf-8"))


def rows(page: str, columns: int) -> list[list[str]]:
    """Cells of the rows of a page's tables of so many columns, their heads left out."""
    lines = [line.strip("|").split("|") for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    heads = {number - 1 for number in rules}
    return [row for n, row in enumerate(cells) if n not in {*heads, *rules} and len(row) == columns]


def test_the_errors_of_the_questions_page_are_errors_of_the_code() -> None:
    texts = [
        node.value
        for file in (REPOSITORY / "forgetting").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = re.findall(r'^### "(.+)"$', (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(quoted) > 20
    assert [part for part in quoted if not any(part in text for text in texts)] == []


def test_every_method_is_on_the_page_of_papers_under_the_name_that_asks_for_it() -> None:
    listed = set()
    known = {key for group in CLASSES for key in settings(group)}
    for _, _, link, setting, _ in rows("papers.md", 5):
        name, file = re.fullmatch(r"\[`(\w+)`\]\(\.\./(\S+)\.py\)", link).groups()  # type: ignore[union-attr]
        assert hasattr(importlib.import_module(file.replace("/", ".")), name)
        key, value = yaml.safe_load(setting.strip("`")).popitem()
        assert key in known or key.rpartition(".")[0] in known
        listed |= {name, value}
    bases = (
        (objectives, objectives.Objective), (online, objectives.Objective), (scores, scores.Score), (terms, terms.Term),
    )  # fmt: skip
    ours = {name for module, base in bases for name, item in vars(module).items()
            if isinstance(item, type) and issubclass(item, base) and item is not base}  # fmt: skip
    assert ours <= listed


def test_the_changelog_names_every_command() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    assert [name for name in [*TRAINER_COMMANDS, *COMMANDS] if f"`{name}`" not in text] == []


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("hardware")


def test_the_minutes_of_the_hardware_page_are_those_of_the_estimate(hardware: Any) -> None:
    shown = {f"| {' | '.join(row)} |" for row in rows("hardware.md", 6)}
    assert shown == {hardware.time_row(backbone) for backbone in hardware.FULL_MINUTES}


def test_what_fits_follows_from_the_memory_of_a_step(hardware: Any) -> None:
    fits = {row[0]: f"| {' | '.join(row)} |" for row in rows("hardware.md", 4)}
    memories = {name: [float(value) for value in values] for name, *values in rows("hardware.md", 5)}
    assert fits.keys() == memories.keys() == set(hardware.MODELS.values())
    for name, (weights, adapter, kept, again) in memories.items():
        memory = hardware.Memory(round(weights * 1e9), round(adapter * 1e9), kept * 1e6, again * 1e6)
        assert hardware.fit_row(name, memory) == fits[name]
        shape = hardware.SHAPES[next(key for key, model in hardware.MODELS.items() if model == name)]
        counted = 2 * (shape.layer_parameters + shape.head_parameters * (1 if shape.tied else 2))
        assert weights * 1e9 == pytest.approx(counted, rel=2e-3, abs=1e7)


def test_memory_of_many_layers_follows_from_that_of_one_and_two(hardware: Any) -> None:
    shape = hardware.Shape(hidden=64, intermediate=96, vocab=256, layers=4, tied=False)
    frozen, trained, kept = hardware.counts(shape, 4)
    memory = hardware.memory(shape)
    assert memory.adapter == 16 * trained
    assert memory.kept == pytest.approx(kept)
    assert memory.weights == pytest.approx(2 * frozen, abs=4 * 64)  # but for the last norm
    assert memory.kept_checkpointing < memory.kept
    assert hardware.memory(replace(shape, layers=8)).kept > 1.5 * kept


def test_the_notebook_prints_what_it_shows() -> None:
    names: dict[str, Any] = {}
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    for cell in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("".join(cell["source"]), names)
        assert printed.getvalue() == "".join(text for output in cell["outputs"] for text in output["text"])


def configuration() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())


def test_the_site_lists_every_page() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    listed = pages(configuration()["nav"])
    assert len(listed) == len(set(listed))
    existing = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.name[:4] != "lab_"}
    at_the_top = {"index.md", "contributing.md", "security.md", "changelog.md"}  # docs/hooks.py makes them
    assert set(listed) == existing | at_the_top


def test_the_site_fetches_no_fonts() -> None:
    assert configuration()["theme"]["font"] is False


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    if not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))):
        pytest.skip("the extra `docs` is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    run = subprocess.run(build, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "dual_loss" in (tmp_path / "site/reference/index.html").read_text()
    assert not re.findall(r'(?:src|rel="stylesheet" href)="https?:', (tmp_path / "site/index.html").read_text())
