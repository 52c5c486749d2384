import json
import math
from pathlib import Path

import pytest
import yaml

from forgetting.cli import main
from forgetting.lab.comparison import PAIRS, ROWS, Comparison, Outcome, Spread
from forgetting.lab.laboratory import Laboratory, experiments_folder
from forgetting.lab.quality import Detection
from forgetting.lab.stages import Stages
from forgetting.lab.world import World
from forgetting.paths import CONFIGS

DETECTION = Detection(100, 0.3, 0.9, 0.6, 0.8, 0.7, {"misleading": 0.9})


def outcome(seed: int, base: int, **averages: int) -> Outcome:
    scores = {name.replace("_", "-"): {"Math": value + 1.0, "AVG": float(value)} for name, value in averages.items()}
    return Outcome(seed, {"base": {"Math": 1.0, "AVG": float(base)}, **scores}, DETECTION)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        [
            outcome(0, 20, full=40, forgetting_token=70, ignoring_token=68),
            outcome(1, 24, full=50, forgetting_token=90, ignoring_token=91),
            outcome(2, 22, full=30, forgetting_token=80, ignoring_token=75),
        ]
    )


def test_mean_and_standard_deviation(comparison: Comparison):
    assert comparison.spread("full", "AVG") == Spread(40.0, 10.0)
    assert comparison.spread("full", "AVG").text() == "40.0 ± 10.0"
    assert Spread.of([3.0]).text() == "3.0"


def test_paired_difference(comparison: Comparison):
    found = comparison.difference("x", "forgetting-token", "ignoring-token")  # +2, −1, +5
    assert found.mean == pytest.approx(2)
    assert found.standard_error == pytest.approx(3 / math.sqrt(3))
    assert (found.num_positive, found.num_worlds) == (2, 3)
    assert found.text() == "+2.00 ± 1.73"


def test_only_rows_that_were_run_are_shown(comparison: Comparison):
    assert [row.name for row in comparison.rows] == [
        "Base", "Full Tokens", "Ignoring (token-level)", "Forgetting (token-level)",
    ]  # fmt: skip
    assert [pair[0] for pair in comparison.pairs] == [
        "Forgetting − Ignoring, token, ρ as in Table 3", "Full Tokens − Base",
    ]  # fmt: skip


def test_markdown(comparison: Comparison):
    scores, differences, found = (table.markdown() for table in comparison.tables())
    assert "mean ± sd over worlds 0, 1, 2" in scores
    assert "|  | ρ | Math | AVG |\n| --- | ---: | ---: | ---: |\n| Base |  | 1.0 ± 0.0 | 22.0 ± 2.0 |" in scores
    assert "| Forgetting (token-level) | 0.7 | 81.0 ± 10.0 | 80.0 ± 10.0 |" in scores
    assert "| Forgetting − Ignoring, token, ρ as in Table 3 | +2.00 ± 1.73 | 2 of 3 |" in differences
    assert "| AUC of Q against the noise | 0.90 ± 0.00 |" in found


def test_one_world_has_no_spread():
    comparison = Comparison([outcome(5, 20, full=40)])
    scores, differences, _ = (table.markdown() for table in comparison.tables())
    assert "world 5" in scores
    assert "±" not in scores + differences


def test_the_record_is_json_and_holds_every_number(comparison: Comparison):
    record = json.loads(json.dumps(comparison.record(), allow_nan=False))
    assert record["rows"]["full"]["AVG"] == {"mean": 40, "sd": 10}
    assert [world["seed"] for world in record["worlds"]] == [0, 1, 2]
    assert record["worlds"][0]["detection"]["recall_by_kind"] == {"misleading": 0.9}


def test_rows_are_experiments_with_the_positive_fraction_that_the_table_says():
    for row in ROWS:
        experiment = yaml.safe_load((experiments_folder() / f"{row.experiment}.yaml").read_text())
        assert experiment["base"] == "lab"
        fraction = experiment["data"]["positive_fraction"]
        assert (row.positive_fraction or "all") == str(fraction)
        sequence = experiment["data"].get("granularity") == "sequence"
        assert sequence == ("seq-level" in row.name)
        assert experiment["model"]["objective"]["class_path"] == row.name.split()[0].replace("Full", "FullTokens")


def test_pairs_at_equal_positive_fraction_differ_in_the_objective_alone():
    for name, first, second in PAIRS:
        if "both" in name and name.startswith("Forgetting"):
            one, other = (yaml.safe_load((experiments_folder() / f"{e}.yaml").read_text()) for e in (first, second))
            assert one["data"] == other["data"]


def test_the_configuration_of_the_lab_keeps_the_papers_values_where_the_lab_has_no_reason():
    paper, lab = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("paper", "lab"))
    assert not {"lora", "warmup_fraction", "weight_decay"} & set(lab["model"])
    assert not {"batch_size", "positive_fraction"} & set(lab["data"])
    assert paper["model"]["learning_rate"] == 1e-4
    assert lab["model"]["learning_rate"] == 1e-3


def test_the_command_writes_the_tables_and_what_was_printed(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(_: Laboratory, world: World, __: Stages) -> Outcome:
        print("a stage's own words")
        return comparison.outcomes[world.seed - 100]

    monkeypatch.setattr(Laboratory, "run", run)
    monkeypatch.chdir(tmp_path)
    main(["lab", "--seeds", "3"])
    output = tmp_path / "runs/lab"
    assert sorted(path.name for path in output.iterdir()) == ["lab.log", "table.json", "table.md"]
    assert (output / "table.md").read_text() == "\n".join(table.markdown() for table in comparison.tables())
    assert json.loads((output / "table.json").read_text()) == json.loads(json.dumps(comparison.record()))
    assert (output / "lab.log").read_text().count("a stage's own words") == 3
    assert "a stage's own words" not in capsys.readouterr().out
