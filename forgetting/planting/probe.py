"""A probe on disk: splits of a clean corpus with noise planted in them, and held-out pairs to ask about."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from forgetting.artifacts import (
    complete_folder,
    hash_content,
    hashes_of,
    read_json,
    refuse_another,
    write_manifest,
    write_yaml,
)
from forgetting.corpus.encoding import tokenizer_hash
from forgetting.corpus.messages import Example
from forgetting.corpus.noise import NoiseSpan
from forgetting.corpus.pool import Examples
from forgetting.corpus.prepare import Corpus
from forgetting.corpus.templates import template_for
from forgetting.errors import UserError
from forgetting.planting.plant import PlantedPool, plant_pool, refuse_rates
from forgetting.planting.tasks import documents, write_tasks

SPLITS = ("train", "reference")
FORMAT = 2  # of the folder and of every rule by which noise follows from a corpus: raise it when one changes


@dataclass(frozen=True)
class Planting:
    """Settings that a probe is made from, the corpus apart.

    Attributes:
        rates: For each kind of noise, the share of the examples of D_train and D_ref that have it.
        seed: Of the draw and of every change.
        template: Name of the template by which the held-out pairs are written.
        max_length: Tokens that a held-out pair may have.
    """

    rates: Mapping[str, float]
    seed: int
    template: str
    max_length: int

    def __post_init__(self) -> None:
        refuse_rates(self.rates)
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected 0 or more.")


@dataclass(frozen=True)
class Probe:
    """A probe's folder.

    Attributes:
        folder: Where it lies.
        counts: By split and kind, in how many examples there is noise, and in how many there should be.
    """

    folder: Path
    counts: Mapping[str, Mapping[str, tuple[int, int]]]

    @property
    def overlay(self) -> Path:
        """Lays the planted splits over an experiment, and takes the folder's name into those of its runs."""
        return self.folder / f"{self.folder.name}.yaml"

    @property
    def suite(self) -> Path:
        """The suite of the held-out pairs."""
        return self.folder / "suite.yaml"


def write_probe(corpus: Corpus, planting: Planting, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Probe:
    """Plant noise in a clean corpus: complete or not at all; the same probe that is there already is left as it is.

    D_train and D_ref have noise at the given rates, and D_val has it in every example, of all kinds alike: its pairs
    are what tasks ask about. Each row keeps its clean twin.

    Raises:
        UserError: The sources know noise of their own, or the folder holds something else.
    """
    settings = {
        "format": FORMAT, "corpus": corpus.content_hash, "rows": _places(corpus), **asdict(planting),
        "tokenizer": tokenizer_hash(tokenizer),
    }  # fmt: skip
    if folder.exists():
        refuse_another(folder, "probe", settings)
        counts = read_json(folder / "manifest.json", dict, ("counts",))["counts"]
        return Probe(folder, {split: {kind: (n, of) for kind, (n, of) in c.items()} for split, c in counts.items()})
    planted = {split: plant_pool(_examples(corpus, split), planting.rates, planting.seed) for split in SPLITS}
    kinds = [kind for kind, rate in planting.rates.items() if rate > 0]
    even = {kind: 1 / len(kinds) for kind in kinds}
    planted["validation"] = plant_pool(_examples(corpus, "validation"), even, planting.seed)
    counts = {split: _counts(pool) for split, pool in planted.items()}
    with complete_folder(folder) as temporary:
        for split, pool in planted.items():
            lines = [json.dumps(row, ensure_ascii=False) for row in pool.rows()]
            (temporary / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        write_yaml(temporary / f"{folder.name}.yaml", overlay(folder, len(corpus.split("validation")) > 0))
        template = template_for(planting.template, tokenizer)
        pairs = documents(planted["validation"].rows(), template, tokenizer, planting.max_length)
        if pairs:
            suite = write_tasks(temporary / "tasks", folder / "tasks", pairs, tokenizer)
            write_yaml(temporary / "suite.yaml", suite)
        content = {"settings": settings, "counts": counts, "files": hashes_of(temporary)}
        write_manifest(temporary / "manifest.json", content)
    return Probe(folder, counts)


def overlay(folder: Path, has_held_out: bool) -> dict[str, Any]:
    """Overlay that makes a probe's files an experiment's splits; `messages: clean` takes the clean twins instead."""

    def split(name: str, messages: str) -> dict[str, Any]:
        noise = {"noise": "noise"} if messages == "messages" else {}
        unused = "clean" if messages == "messages" else "messages"
        path = (folder / f"{name}.jsonl").as_posix()
        return {"path": path, "messages": messages, **noise, "source_column": "source", "unused_columns": [unused]}

    splits = {name: split(name, "messages") for name in SPLITS}
    if has_held_out:
        splits["validation"] = split("validation", "clean")
    return {"data": {"corpus": {"sources": {}, "num_validation": 0, **splits}}}


def _examples(corpus: Corpus, split: str) -> Examples:
    examples = Examples()
    for row in map(dict, corpus.split(split)):
        noise = tuple(NoiseSpan(span["start"], span["end"], span["kind"]) for span in row["noise"] or ())
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        examples.append(Example(messages, row["source"], row["source_row"], noise))
    return examples


def _places(corpus: Corpus) -> str:
    """Hash of where the examples stand in their sources, which the draw follows: a corpus is the same in any order."""
    splits = (corpus.split(name) for name in (*SPLITS, "validation"))
    return hash_content([[list(split["source"]), list(split["source_row"])] for split in splits])


def _counts(pool: PlantedPool) -> dict[str, tuple[int, int]]:
    return {kind: (number, pool.wanted[kind]) for kind, number in pool.counts().items()}
