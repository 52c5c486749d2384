"""Tables over real runs and evaluations: whose seeds belong together, and which adapter was evaluated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_backbone
from small_suite import write_suite

from forgetting.cli import main

pytestmark = pytest.mark.slow

RUN = """
trainer: {{accelerator: cpu, devices: 1, precision: 32-true, enable_progress_bar: false}}
model: {{backbone: backbone, dtype: float32, learning_rate: {learning_rate}, lora: {{rank: 4}}}}
data:
  corpus:
    sources: {{made: {{path: source.jsonl, prompt: "{{question}}", response: "{{answer}}"}}}}
    num_train: 12
    num_reference: 0
    num_validation: 4
  max_length: 64
  batch_size: 6
  positive_fraction: all
"""
TABLE = """
title: Small
caption: One method.
suite: small.yaml
experiments: experiments
seeds: 2
columns: [Sums, AVG]
groups: [{name: Tiny, rows: [{name: Base, base: backbone}, {name: Full, run: tiny/full}]}]
"""


def write_experiment(learning_rate: float) -> None:
    Path("experiments/tiny/full.yaml").write_text(RUN.format(learning_rate=learning_rate))


def run(seed: int) -> None:
    main(["fit", "--config", "experiments/tiny/full.yaml", "--seed_everything", str(seed)])


def evaluate(target: str) -> None:
    main(["evaluate", target, "--suite", "small.yaml", "--quiet", "--device", "cpu"])


@pytest.fixture
def table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:  # fmt: skip
    """A folder with two seeds that were trained and evaluated; the text of its table."""
    monkeypatch.chdir(tmp_path)
    for folder in ("experiments/tiny", "tables"):
        Path(folder).mkdir(parents=True)
    write_backbone(Path("backbone"))
    rows = [{"question": f"{i} plus {i % 7}?", "answer": f" It is {i + i % 7}."} for i in range(30)]
    Path("source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_suite(tmp_path, rows)
    Path("tables/small.yaml").write_text(TABLE)
    write_experiment(1e-2)
    for seed in (0, 1):
        run(seed)
        evaluate(f"runs/tiny/full/seed-{seed}")
    evaluate("backbone")

    def text() -> str:
        capsys.readouterr()
        main(["table", "tables/small.yaml"])
        return capsys.readouterr().out

    return text


def test_a_row_counts_the_runs_that_are_there(table: Callable[[], str]) -> None:
    assert "| Full | 2 seeds |" in table()
    assert not any(word in table() for word in ("no mean", "another adapter", "do not share", "Not all results"))

    # Trained again: until it is evaluated again, its result is not of this run.
    shutil.rmtree("runs/tiny/full/seed-1")
    write_experiment(3e-2)
    results = {path.name: path.read_text() for path in Path("runs/tiny/full/seed-0").glob("results*.json")}
    run(1)
    for name, content in results.items():
        (Path("runs/tiny/full/seed-1") / name).write_text(content)
    text = table()
    assert "| Full | 1 seed" in text
    assert "seed-1/adapter: the run was trained again since. It does not count; evaluate again." in text
    assert (
        "- Full (Tiny): `python -m forgetting evaluate runs/tiny/full/seed-1 --suite small.yaml --device cpu`" in text
    )

    # Evaluated again: it counts, but it is no second seed of the other run.
    evaluate("runs/tiny/full/seed-1")
    text = table()
    assert "Full has no mean, for its seeds do not belong together" in text
    assert "runs/tiny/full/seed-0 in model.learning_rate (0.03, not 0.01)" in text
    assert "| Full |  |    — |    — |" in text

    # The other seed in the same configuration: one row again.
    shutil.rmtree("runs/tiny/full/seed-0")
    run(0)
    evaluate("runs/tiny/full/seed-0")
    assert "| Full | 2 seeds |" in table()
