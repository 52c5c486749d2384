"""What precision and micro-batches do to scores and masks: a reference's store against scores made anew.

Give the run of a reference that was trained and scored in float32, and the backbone as a folder.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from setting import machine

from forgetting.corpus.tokens import TokenizedCorpus, TokenizedSplit
from forgetting.method.scoring import ScoringDataset, score_shard
from forgetting.method.selection import Granularity, Selection, find_thresholds, sequence_means
from forgetting.method.store import COLUMNS, ScoreStore, shard_ranges
from forgetting.model.backbone import load_backbone
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import load_lora


def scored(backbone: str, adapter: Path, split: TokenizedSplit, precision: str, budget: int) -> np.ndarray:
    """Both models' nll of every response token: `[2, tokens]`."""
    low = precision == "bf16-mixed"
    dtype = "bfloat16" if low else "float32"
    model = LanguageModel(load_lora(load_backbone(backbone, dtype=dtype), adapter)).eval()
    columns = []
    work = ScoringDataset({split.name: split}, shard_ranges(split.name, len(split), 512), budget)
    for number in range(len(work)):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            scores = score_shard(model, work[number])
        assert scores is not None
        columns.append(np.stack([scores.columns[name] for name in COLUMNS]))
    return np.concatenate(columns, axis=1)


def positive(nll: np.ndarray, num_targets: np.ndarray, granularity: Granularity) -> np.ndarray:
    """The positive mask at ρ = 0.7."""
    score = nll[0] - nll[1]
    if granularity == "sequence":
        score = sequence_means(score, num_targets)
    return find_thresholds(lambda: [score], len(score), Selection(0.7, granularity)).masks(score, 0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="such as runs/mine/reference/seed-0")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--corpora", type=Path, default=Path("corpora"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = ScoreStore.open(options.run / "scores")
    folders = (TokenizedCorpus(folder) for folder in options.corpora.glob("*/tokens-*"))
    split = next(t for t in folders if t.content_hash == store.identity["tokens"]).split("train")
    stored, counts = store.split("train"), split.num_targets
    before = np.stack([stored.column(name) for name in COLUMNS])
    median = np.median(np.abs(before[0] - before[1]))
    print(f"{machine()}\n{before.shape[1]:,} response tokens, median |Q| {median:.2f} nats")
    found: dict[str, np.ndarray] = {"the store": before}
    for precision in ("32-true", "bf16-mixed"):
        for budget in (1024, 8192, 1):
            found[f"{precision}, budget {budget}"] = scored(
                options.backbone, options.run / "adapter", split, precision, budget
            )
    pairs = [("the store", name) for name in found if name != "the store"]
    pairs += [(f"{p}, budget 1024", f"{p}, budget {b}") for p in ("32-true", "bf16-mixed") for b in (8192, 1)]
    for one, other in pairs:
        a, b = found[one], found[other]
        apart = np.abs(a - b)
        changed = [np.mean(positive(a, counts, g) != positive(b, counts, g)) for g in ("token", "sequence")]
        print(f"{one} and {other}: nll apart by {apart.mean():.1e} in the mean, {np.quantile(apart, 0.9999):.1e} in "
              f"99.99 %, {apart.max():.1e} at most; {changed[0]:.3%} of the tokens and {changed[1]:.3%} of the "
              "sequences change their mask", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
