"""What the pages show works: Python runs, commands parse, targets and linked files exist."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from conftest import byte_tokenizer
from transformers import AutoTokenizer

from forgetting.cli import COMMANDS, SETTINGS_COMMANDS, TRAINER_COMMANDS, main
from forgetting.errors import UserError
from forgetting.lab.world import overlay
from forgetting.settings_help import asked

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {
    "extending.md#3": "takes the files of a run as arguments; tests/test_extending.py runs it",
    "using.md#0": "needs TRL and token weights; tests/test_runs_token_weights.py runs it",
}
"""Blocks of Python, page#number, that are not run here, and why."""


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def shell_lines(page: Path) -> Iterator[str]:
    """Every line of a shell block, continued ones joined, and every inline code outside of blocks."""
    for code in blocks(page, "sh", "bash", ""):
        yield from code.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def named(pages: list[Path]) -> list[str]:
    return [page.relative_to(REPOSITORY).as_posix() for page in pages]


PYTHON = [(page, number, code) for page in PAGES for number, code in enumerate(blocks(page, "python"))]
PLACEHOLDER = re.compile(r"-m forgetting .*(<[a-z ._]+>)")
COMMAND_LINES = [
    (page, line.split(" #")[0].strip()) for page in PAGES for line in shell_lines(page)
    if re.search(r"-m forgetting\b", line) and not PLACEHOLDER.search(line.split(" #")[0])
]  # fmt: skip


def write_stand_ins(folder: Path) -> None:
    """Files under the names that the pages use."""
    (folder / "mine.jsonl").write_text(
        "\n".join(json.dumps({"q": f"question {i}", "a": f"answer {i}"}) for i in range(1000))
    )
    (folder / "ASDiv.xml").write_text(
        "<Set><Problem><Body>Two and two.</Body><Question>How many?</Question><Solution-Type>Sum</Solution-Type>"
        "<Answer>4 (apples)</Answer><Formula>2+2=4</Formula></Problem></Set>"
    )
    options = [{"label": label, "text": label.lower()} for label in "ABCD"]
    (folder / "arc_challenge_test.jsonl").write_text(json.dumps({"id": "1", "options": options, "answer": "B"}) + "\n")


@pytest.mark.parametrize(("page", "number", "code"), PYTHON, ids=[f"{p.name}#{n}" for p, n, _ in PYTHON])
def test_python_runs(page: Path, number: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := NOT_RUN.get(f"{page.name}#{number}"):
        pytest.skip(reason)
    write_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: byte_tokenizer())  # stands in for the hub's
    names: dict[str, Any] = {}
    exec(code, names)
    if page.name == "corpus.md":
        assert len(names["train"]) == 900
    if page.name == "evaluation.md":
        assert json.loads(Path("asdiv.jsonl").read_text())["answer"] == "4 (apples)"
        assert json.loads(Path("arc.jsonl").read_text())["choices"]["label"] == ["A", "B", "C", "D"]


class Parsed(Exception):
    """A command line was parsed: what would follow is not run."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    original = jsonargparse.ArgumentParser.parse_args

    def parse_args(*arguments: Any, **options: Any) -> Any:
        original(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", parse_args)


@pytest.fixture
def folder_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's files, with room for those that a page tells its reader to write."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "experiments").mkdir()
    for path in (REPOSITORY / "experiments").iterdir():
        (tmp_path / "experiments" / path.name).symlink_to(path)
    for number in (100, 101):
        world = tmp_path / "worlds" / str(number)
        world.mkdir(parents=True)
        (world / f"world-{number}.yaml").write_text(yaml.safe_dump(overlay(number, world)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_shown_files(page: Path, folder: Path) -> None:
    """Write each YAML block whose file is named in the text before it, and which is not the repository's."""
    text = page.read_text()
    for block in FENCE.finditer(text):
        before = re.findall(r"`([\w/.-]+\.yaml)`", text[: block.start()].rsplit("```", 1)[-1])
        if block[1] == "yaml" and before and not (folder / before[-1]).exists():
            file = folder / before[-1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block[2])


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=[f"{p.name}: {x[-60:]}" for p, x in COMMAND_LINES])
def test_commands_parse(page: Path, line: str, folder_of_a_user: Path) -> None:
    write_shown_files(page, folder_of_a_user)
    words = shlex.split(line)
    arguments = words[words.index("forgetting", words.index("-m")) + 1 :]
    if len(arguments) < 2:  # a command that is named
        assert not arguments or arguments[0] in {*COMMANDS, *TRAINER_COMMANDS}
        return
    if arguments[0] in SETTINGS_COMMANDS and asked(arguments[1:]):  # help is printed, and nothing else parsed
        with suppress(Parsed):
            main(arguments)
        return
    with pytest.raises(Parsed):
        main(arguments)


@pytest.mark.usefixtures("parse_only", "folder_of_a_user")
@pytest.mark.parametrize("arguments", [["evaluate", "x", "--none", "1"], ["fit", "--config", "experiments/none.yaml"]])
def test_commands_that_do_not_parse_are_seen(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        main(arguments)


def targets(words: list[str]) -> list[str]:
    """What a `make` or `snakemake` command line asks for."""
    with_value = ("-s", "--profile", "-c", "--cores", "-j", "--configfile")
    return [
        word for before, word in pairwise(words)
        if not word.startswith("-") and before not in with_value and "=" not in word
    ]  # fmt: skip


def existing_targets(program: str) -> set[str]:
    if program == "make":
        return set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    rules = re.findall(r"^(?:rule|checkpoint) (\w+):", (REPOSITORY / "experiments/Snakefile").read_text(), re.MULTILINE)
    return {*rules, *(path.stem for path in (REPOSITORY / "experiments").glob("*/*.yaml"))}


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_targets_exist(page: Path) -> None:
    for line in shell_lines(page):
        if re.match(r"(make|snakemake) [a-z-]", line) and "<" not in line:
            program, *_ = words = shlex.split(line, comments=True)
            assert set(targets(words)) <= existing_targets(program), line


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not link.startswith(("http", "#", "mailto:")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_there_is_something_to_test() -> None:
    assert len(PYTHON) >= 2
    assert len(COMMAND_LINES) >= 20
