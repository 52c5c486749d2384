"""Flags of Alpaca's rows that can be computed: each finds what it says, and leaves its near neighbor alone."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from small_experiment import METHOD, REFERENCE, write_experiments

from forgetting.cli import main

FILE = Path(__file__).parents[1] / "experiments" / "smollm2" / "flags.py"


@pytest.fixture(scope="module")
def flags() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flags", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LONG = "This is running text of many more than twenty words, which is what it takes for a text to be looked at "


@pytest.mark.parametrize(
    ("name", "flagged", "left"),
    [
        ("wrong_arithmetic", ("", "", "9 + 5 = 13."), ("", "", "9 + 5 = 14, and 10 / 3 = 3.33")),
        ("wrong_arithmetic", ("", "", "It is 1,000 x 2 = 2,001"), ("", "", "2 + 3 * 4 = 14")),
        ("refusal", ("", "", "I'm sorry, but I cannot."), ("", "", "I'm sorry to hear that.")),
        ("refusal", ("", "", "<nooutput>"), ("", "", "I can't get enough of it.")),
        (
            "without_input",
            ("Edit the given text.", "", "Done."),
            ("Edit the given text: he go", "", "x"),
        ),
        ("without_input", ("Edit the given text", "<No input>", "x"), ("Edit the given text", "He go.", "He goes.")),
        ("placeholder", ("Name a color", "No Input", "Red"), ("Name a color", "", "Red")),
        ("truncated", ("", "", LONG + "and it stops in the mid"), ("", "", LONG + "and it ends.")),
        ("wrong_count", ("List three colors", "", "1. red\n2. blue"), ("List two colors", "", "1. red\n2. blue")),
        ("wrong_count", ("Give 3 colors", "", "- red\n- blue"), ("Give 3 to 5 colors", "", "- red\n- blue")),
    ],
)
def test_flag_and_its_neighbor(
    flags: ModuleType, name: str, flagged: tuple[str, str, str], left: tuple[str, str, str]
) -> None:
    keys = ("instruction", "input", "output")
    assert getattr(flags, name)(dict(zip(keys, flagged, strict=True)))
    assert not getattr(flags, name)(dict(zip(keys, left, strict=True)))


def test_flags_travel_as_known_noise_and_are_measured(
    flags: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target, rows = tmp_path / "alpaca.json", tmp_path / "flagged.jsonl", tmp_path / "rows.jsonl"
    bad = {"instruction": "Add", "input": "", "output": "1 + 1 = 3"}
    good = {"instruction": "Add", "input": "", "output": "1 + 1 = 2"}
    source.write_text(json.dumps([bad, good] * 12 + [{**good, "output": " "}]), encoding="utf-8")
    flags.flag(source, target)
    written = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["noise"] for row in written[:2]] == [[[0, 9, "wrong arithmetic"]], []]
    assert capsys.readouterr().out.splitlines() == ["wrong arithmetic: 12", "none: 12"]

    # As `inspect --jsonl` writes them: a lower score, a higher nll and as many tokens.
    lines = []
    for row in written:
        kind = row["noise"][0][2] if row["noise"] else None
        score, nll = (-1.0, 2.0) if kind else (1.0, 1.0)
        metrics = {"score": [None, score], "nll_base": [None, nll], "nll_reference": [None, nll]}
        lines.append(json.dumps({"metrics": metrics, "annotations": {"noise": [None, kind]}}))
    rows.write_text("\n".join(lines), encoding="utf-8")
    flags.measure(rows)
    interval = ["1.00 [1.00, 1.00]", "0.00 [0.00, 0.00]", "0.00 [0.00, 0.00]", "0.50 [0.50, 0.50]"]
    assert capsys.readouterr().out.splitlines()[2] == f"| wrong arithmetic | 12 | {' | '.join(interval)} |"


def test_flags_are_in_the_rows_that_inspect_writes(
    flags: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a reference, its scores and `inspect`: as many examples of each flag as were written."""
    monkeypatch.chdir(tmp_path)
    write_experiments(tmp_path)
    rows = [{"instruction": f"Add {n}", "input": "", "output": f"{n} + {n} = {2 * n + n % 2}"} for n in range(64)]
    Path("alpaca.json").write_text(json.dumps(rows), encoding="utf-8")
    flags.flag(Path("alpaca.json"), Path("flagged.jsonl"))
    shutil.copy("flagged.jsonl", "source.jsonl")
    source = {"path": "source.jsonl", "prompt": "{instruction}", "response": "{output}", "noise": "noise"}
    given = ["--data.corpus.sources", json.dumps({"made": source})]
    for command in ("fit", "score"):
        main([command, "--config", REFERENCE, *given])
    main(["inspect", "--config", METHOD, *given, "--jsonl", "rows.jsonl"])
    capsys.readouterr()
    flags.measure(Path("rows.jsonl"))
    header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| flag | examples of 40 | score | nll_base | nll_reference | tokens |"
    kinds = [json.loads(row)["annotations"]["noise"] for row in Path("rows.jsonl").read_text().splitlines()]
    flagged = sum("wrong arithmetic" in kind for kind in kinds)
    assert 10 < flagged < 30
    assert line.startswith(f"| wrong arithmetic | {flagged} | 0.")
