"""Worlds in which Q finds the known noise and worlds in which it does not, and the figures of selection health in each.

    python experiments/health/worlds.py --seeds 200 201:200 --results docs/results/health.json

A base model of the lab is pretrained once, for as many seeds as are wanted. Each kind of world then has data of its
own, on which the reference is trained and scores: nothing else of the method runs. What is in the results, and
what is on disk, is not made again. experiments/health/table.py turns the results into the table of docs/health.md.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from forgetting.artifacts import complete_folder, read_json, write_json
from forgetting.cli import build_cli, main
from forgetting.errors import UserError
from forgetting.lab.language import TASKS, Language, build_language
from forgetting.lab.pretraining import one_thread
from forgetting.lab.texts import BOILERPLATE, RANDOM, SOURCES, Quality, Row, noisy_answer, noisy_row, write_rows
from forgetting.lab.world import World, overlay, write_world
from forgetting.method.data import ForgettingData
from forgetting.method.health import POSITIVE_FRACTION
from forgetting.method.masks import ScoredSplit
from forgetting.method.scores import LossReduction
from forgetting.method.selection import Selection, find_thresholds
from forgetting.method.store import ScoreStore
from forgetting.runs.selection_health import stored_health
from forgetting.studies.noise import area_under_curve

REFERENCE = Path(__file__).parents[1] / "lab" / "reference.yaml"
Draw = Callable[[Random, Language, Quality], Row]


def changed(change: Callable[[Quality], Quality]) -> Draw:
    """Rows as the lab's, of sources of another quality."""
    return lambda draw, language, quality: noisy_row(draw, language, change(quality))


def tenth(quality: Quality) -> Quality:
    """A source with a tenth of the noise of each kind."""
    return Quality(quality.share, 0.1 * quality.misleading, 0.1 * quality.random, 0.1 * quality.boilerplate)


def as_pretraining(draw: Random, language: Language, quality: Quality) -> Row:
    """A row as noisy as the base model's own dialogues without a cue, whatever its source."""
    item = draw.choice(language.train_items[draw.choice(list(TASKS))])
    misleading = [slot.misconception_rate for slot in item.asked]
    answer = noisy_answer(draw, language, item.asked, misleading, RANDOM, BOILERPLATE[True])
    return Row(" ".join(item.prompt), " ".join(answer.words), answer.noise)


@dataclass(frozen=True)
class Kind:
    """How a kind of world differs from the lab's.

    Attributes:
        row: Draws a row of a source.
        reference_row: Draws a row of a D_ref of its own; None draws D_ref from the sources, as the method has it.
        options: Overrides of the reference's experiment.
    """

    row: Draw = noisy_row
    reference_row: Draw | None = None
    options: tuple[str, ...] = ()


KINDS = {
    "default": Kind(),
    "a tenth of the noise": Kind(changed(tenth)),
    "no boilerplate": Kind(changed(lambda q: replace(q, boilerplate=0.0))),
    "sources alike": Kind(changed(lambda q: replace(SOURCES["alpaca"], share=q.share))),
    "three training steps": Kind(options=("--data.corpus.num_reference=72",)),
    "D_ref of 24, 60 epochs": Kind(
        options=("--data.corpus.num_reference=24", "--trainer.max_epochs=60", "--model.learning_rate=3e-3")
    ),
    "only random noise": Kind(changed(lambda q: Quality(q.share, 0.0, 0.3, 0.0))),
    "boilerplate in half of the slots": Kind(changed(lambda q: replace(q, boilerplate=0.5))),
    "dirtier than pretraining": Kind(changed(lambda q: replace(q, misleading=0.95))),
    "as noisy as pretraining": Kind(as_pretraining),
    "D_ref of noise": Kind(reference_row=changed(lambda q: replace(q, misleading=0.95))),
    "learning rate 0.1": Kind(options=("--data.corpus.num_reference=240", "--model.learning_rate=0.1")),
}
"""Of the first docs/lab.md says that selection works, and of three that it does not; the others were made for this
study. Whether selection fails in a world is measured in each."""


@dataclass(frozen=True)
class Seed:
    """Where a world comes from: `301`, or `302:300` for fresh data and draws with the language and base model of 300.

    Attributes:
        number: Of the data, the corpus's draws and the reference.
        base: Of the lab's world that has the language and the base model.
    """

    number: int
    base: int

    @classmethod
    def parse(cls, text: str) -> "Seed":
        """From the command line."""
        number, _, base = text.partition(":")
        return cls(int(number), int(base or number))


def write_kind(seed: Seed, kind: Kind, worlds: Path, folder: Path) -> None:
    """Write the data of a kind of world, and the overlay that names them and the base model."""
    language = build_language(seed.base)
    names, shares = list(SOURCES), [quality.share for quality in SOURCES.values()]

    def rows(of: Draw, purpose: str, number: int) -> Iterable[tuple[str, Row]]:
        draw, distinct = Random(f"{purpose} {seed.number}"), set[tuple[str, str]]()
        while len(distinct) < number:
            (source,) = draw.choices(names, shares)
            row = of(draw, language, SOURCES[source])
            distinct.add((row.prompt, row.response))
            yield source, row

    content = overlay(seed.number, folder)
    content["model"]["backbone"] = (worlds / str(seed.base) / "base").as_posix()
    with complete_folder(folder) as temporary:
        (temporary / "sources").mkdir()
        by_source: dict[str, list[Row]] = {name: [] for name in SOURCES}
        for source, row in rows(kind.row, "sources", World(seed.base).num_distinct):
            by_source[source].append(row)
        for source, drawn in by_source.items():
            write_rows(temporary / "sources" / f"{source}.jsonl", drawn)
        if kind.reference_row is not None:
            write_rows(temporary / "reference.jsonl", [row for _, row in rows(kind.reference_row, "reference", 1200)])
            source = content["data"]["corpus"]["sources"]["dolly"]
            content["data"]["corpus"]["reference"] = {**source, "path": (folder / "reference.jsonl").as_posix()}
        (temporary / "world.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def trained_and_scored(seed: int, name: str, folder: Path, runs: Path) -> ForgettingData:
    """Train the reference and score with it; the data with the folder of the store.

    Raises:
        UserError: Its training or its scores broke off.
    """
    options = [
        "--config", str(REFERENCE), "--config", str(folder / "world.yaml"), "--run.root", str(runs),
        "--run.id", name.replace(" ", "-"), "--trainer.enable_progress_bar=false", *KINDS[name].options,
    ]  # fmt: skip
    log = runs / "logs" / f"{seed} {name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, redirect_stdout(file):
        main(["fit", *options])
        return build_cli(["score", *options]).datamodule


def detection(data: ForgettingData) -> dict[str, float]:
    """How well Q finds the known noise."""
    assert data.store_folder is not None, "the store lies in the run"
    scored = ScoredSplit(ScoreStore.open(data.store_folder).split("train"), LossReduction())
    score, noise = np.concatenate(list(scored.chunks())), data.tokens.split("train").noise
    assert noise is not None, "the lab knows its noise"
    thresholds = find_thresholds(scored.chunks, len(score), Selection(POSITIVE_FRACTION))
    _, is_negative = thresholds.masks(score, 0)
    return {
        "noise_fraction": float((noise > 0).mean()), "auc": area_under_curve(score, noise > 0),
        "precision": float((noise[is_negative] > 0).mean()),
    }  # fmt: skip


def further_candidates(data: ForgettingData) -> dict[str, float]:
    """Figures that `score` does not print: candidates for a warning all the same."""
    assert data.store_folder is not None, "the store lies in the run"
    train = ScoreStore.open(data.store_folder).split("train")
    score = np.concatenate(list(ScoredSplit(train, LossReduction()).chunks())).astype(np.float64)
    example = np.repeat(np.arange(len(train)), train.num_targets())
    means = np.bincount(example, score) / np.bincount(example)
    return {
        "spread": float(score.std()), "positive_mass": float(score.clip(0).sum() / np.abs(score).sum()),
        "between_examples": float(means[example].var() / score.var()),
    }  # fmt: skip


def measure(seed: Seed, name: str, worlds: Path, runs: Path) -> dict[str, Any]:
    """A world's figures; `failed` where the reference could not be trained."""
    folder = worlds / "kinds" / str(seed.number) / name.replace(" ", "-")
    if not folder.exists():
        write_kind(seed, KINDS[name], worlds, folder)
    record: dict[str, Any] = {"seed": seed.number, "base": seed.base, "kind": name}
    try:
        data = trained_and_scored(seed.number, name, folder, runs)
    except UserError as error:
        return record | {"failed": str(error)}
    health = stored_health(data, POSITIVE_FRACTION)
    figures = {key.removeprefix("health/"): value for key, value in health.scalars().items()}
    figures |= {"nll_base": health.held_out.base} if health.held_out is not None else {}
    figures |= {f"tokens/{group.name}": group.num_tokens for group in health.by_source}
    return record | detection(data) | {"figures": figures | further_candidates(data)}


def run() -> None:
    """Measure what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=Seed.parse, nargs="+", required=True, help="worlds, such as 300 301 302:300")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="kinds of worlds")
    parser.add_argument("--worlds", type=Path, default=Path("worlds"), help="folder of the worlds")
    parser.add_argument("--runs", type=Path, default=Path("runs/health"), help="folder of the runs")
    parser.add_argument("--results", type=Path, required=True, help="JSON file, added to")
    options = parser.parse_args()
    records: list[dict[str, Any]] = read_json(options.results, list) if options.results.is_file() else []
    for seed in options.seeds:
        for name in options.kinds:
            if any((record["seed"], record["kind"]) == (seed.number, name) for record in records):
                continue
            with one_thread():  # the same numbers whatever the number of cores
                write_world(World(seed.base), options.worlds / str(seed.base))
                record = measure(seed, name, options.worlds, options.runs)
            record = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.5g}"))
            records.append(record)
            records.sort(key=lambda entry: (entry["seed"], list(KINDS).index(entry["kind"])))
            write_json(options.results, records)
            print(seed.number, name, record.get("failed", record.get("auc")), flush=True)


if __name__ == "__main__":
    run()
