"""What a command says while it runs and at its end, without a terminal."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_experiment import METHOD, REFERENCE, RUN, STEPS

from forgetting import progress
from forgetting.cli import main
from forgetting.method.store import ScoreStore, close_store
from forgetting.progress import duration

FIT, SCORES = ["fit", "--config", METHOD], Path("runs/tiny/reference/seed-0/scores")
WANTED = "--trainer.enable_progress_bar=null"


@pytest.fixture
def every_line(monkeypatch):
    """Every line is due."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)


def test_fit_says_a_line_for_what_matters_and_what_to_run_next(scored_work, every_line, capsys):
    main([*FIT, WANTED])
    said = capsys.readouterr().out
    lines = re.findall(
        r"^step (\d+) of (\d+), positive nll [\d.]+, negative nll [\d.]+, λ [\d.e-]+(?:, [\d,]+ tokens/s)?, "
        r"about \d+ s left$", said, re.MULTILINE,
    )  # fmt: skip
    assert [(int(step), int(total)) for step, total in lines] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert "held-out batch 1 of " in said
    assert re.search(rf"^trained in \d+ s, held-out nll [\d.]+: {RUN}/adapter, {RUN}/metrics.csv$", said, re.MULTILINE)
    assert said.rstrip().endswith(f"next: python -m forgetting evaluate {RUN}")
    assert "\r" not in said


def test_score_counts_examples_inside_a_shard(scored_work, every_line, capsys):
    shutil.rmtree(SCORES)
    main(["score", "--config", REFERENCE, WANTED])
    said = capsys.readouterr().out
    done = [int(number) for number in re.findall(r"^(\d+) of 48 examples scored, about", said, re.MULTILINE)]
    shards = len(json.loads((SCORES / "manifest.json").read_text())["shards"])
    assert done == sorted(done)
    assert done[-1] == 48  # of D_train and D_val
    assert len(done) > shards
    assert f"next: python -m forgetting fit --config {METHOD}" in said
    assert said.rstrip().endswith(WANTED)  # with what the reference was scored with
    train = ScoreStore.open(SCORES).split("train")
    assert f"selection health, {train.num_tokens:,} response tokens of D_train" in said
    assert f"  nll of D_train: base {train.column('nll_base').mean(dtype=np.float64):.4f}, reference" in said
    assert re.search(r"^  negative at ρ 0.7, by source: made (29|30)\.\d%$", said, re.MULTILINE)
    assert "To know it: python -m forgetting probe" in said
    Path("experiments/tiny/a-study.yaml").write_text("title: none of these\n")
    main(["score", "--config", REFERENCE])
    assert capsys.readouterr().out.rstrip().endswith(f"next: python -m forgetting fit --config {METHOD}")


def test_prepare_counts_rows_and_examples(scored_work, every_line, capsys):
    shutil.rmtree("corpora")
    main(["prepare", "--config", METHOD])
    said = capsys.readouterr().out
    assert re.findall(r"^(\d+) rows of made read$", said, re.MULTILINE) == [str(number) for number in range(1, 81)]
    for split, total in (("train", 40), ("reference", 16), ("validation", 8)):
        done = re.findall(rf"^(\d+) of {total} examples of {split} in tokens, about \d+ s left$", said, re.MULTILINE)
        assert done == [str(number) for number in range(1, total + 1)]


def test_score_compares_other_seeds_of_the_same_reference_on_the_same_corpus(scored_work, capsys):
    run = SCORES.parent
    for number in (1, 2, 3):
        shutil.copytree(run, run.with_name(f"seed-{number}"))
    store = ScoreStore.open(SCORES)
    close_store(run.with_name("seed-2") / "scores", {**store.identity, "corpus": "another"}, [], {})
    (run.with_name("seed-3") / "scores/manifest.json").unlink()
    main(["score", "--config", REFERENCE, "--data.positive_fraction=0.5"])
    said = capsys.readouterr().out
    assert "correlation of Q with the Q of seed-1: 1.00" in said
    assert "the Q of seed-0" not in said  # itself
    assert "the Q of seed-2" not in said
    assert "the Q of seed-3" not in said
    assert re.search(r"^  negative at ρ 0.5, by source: made (49|50)\.\d%$", said, re.MULTILINE)


def test_a_bar_of_the_users_own_is_left_alone(scored_work, every_line, capsys):
    main([*FIT, WANTED, "--trainer.callbacks=TQDMProgressBar"])
    said = capsys.readouterr().out
    assert "Epoch 1" in said
    assert "positive nll" not in said


def test_nothing_is_said_before_it_is_due_nor_where_it_is_not_wanted(scored_work, monkeypatch, capsys):
    main([*FIT, WANTED])  # over in less than half a minute
    assert "step " not in capsys.readouterr().out.replace("optimizer step", "").replace("per step", "")
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    main([*FIT, "--seed_everything=1"])  # the experiment switches it off
    assert "positive nll" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (3599.0, "1 h 00 min"), (11_100.0, "3 h 05 min")],
)
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text
