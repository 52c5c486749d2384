"""The exact cut at ρ over many scores: in a stream, from a score store, and by NumPy in memory.

Time and peak memory (the process's own: mapped files left out) of each, in a process of its own; the cuts must be
equal to the bit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from setting import machine, private_memory

from forgetting.method.masks import ScoredSplit, Selected
from forgetting.method.scores import LossReduction
from forgetting.method.selection import Selection, threshold_of_top
from forgetting.method.store import ScoreStore, close_store, shard_ranges, write_shard

PIECE = 2**20
RHO = 0.7
KINDS = ["stream", "store", "np.partition", "np.sort"]


def write_scores(folder: Path, num: int) -> None:
    """Two columns of nll in a file each, half of the tokens with one of 1,000 scores, so that there are ties."""
    generator = np.random.default_rng(0)
    with (folder / "base").open("wb") as base, (folder / "reference").open("wb") as reference:
        for first in range(0, num, PIECE):
            size = min(PIECE, num - first)
            nll = generator.exponential(2, size).astype(np.float32)
            nll[: size // 2] = np.round(nll[: size // 2], 1)
            base.write(nll.tobytes())
            reference.write((nll * np.float32(0.5)).tobytes())


def write_store(folder: Path, num: int, tokens_per_example: int = 100, examples_per_shard: int = 512) -> None:
    """The same scores as a store with shards of the usual size."""
    base, reference = (np.memmap(folder / name, np.float32, "r") for name in ("base", "reference"))
    ranges = shard_ranges("train", num // tokens_per_example, examples_per_shard)
    for shard in ranges:
        piece = slice(shard.first * tokens_per_example, shard.last * tokens_per_example)
        counts = np.full(shard.last - shard.first, tokens_per_example)
        write_shard(folder / "store", shard, {}, counts, {"nll_base": base[piece], "nll_reference": reference[piece]})
    close_store(folder / "store", {}, ranges, {})


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one way to the threshold."""
    base, reference = (np.memmap(folder / name, np.float32, "r") for name in ("base", "reference"))
    num_selected = round(RHO * len(base))

    def chunks() -> Iterator[np.ndarray]:
        for first in range(0, len(base), PIECE):
            yield base[first : first + PIECE] - reference[first : first + PIECE]

    start, cpu = time.perf_counter(), time.process_time()
    with private_memory() as peak:
        match kind:
            case "stream":
                threshold = threshold_of_top(chunks, num_selected).value
            case "store":
                scored = ScoredSplit(ScoreStore.open(folder / "store").split("train"), LossReduction())
                thresholds = Selected(scored, Selection(RHO)).thresholds
                assert thresholds is not None
                threshold = thresholds.positive.value
            case _:
                scores = np.concatenate(list(chunks()))
                place = len(scores) - num_selected
                sort = np.sort if kind == "np.sort" else lambda values: np.partition(values, place)
                threshold = float(sort(scores)[place])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"threshold": threshold, "seconds": seconds, "cpu": cpu, "peak": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=int, nargs="*", default=[10**7, 10**8])
    parser.add_argument("--one", nargs=2, help="measure one way, on the scores in a folder, and print it as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return
    print(f"{machine()}; ρ = {RHO}")
    print(f"{'scores':>13}  {'':<14}{'seconds':>8}{'CPU s':>8}{'peak MB':>9}")
    for num in options.scores:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_scores(folder, num)
            write_store(folder, num)
            thresholds = set()
            for kind in KINDS:
                command = [sys.executable, __file__, "--one", kind, temporary]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                thresholds.add(found["threshold"])
                print(
                    f"{num:>13,}  {kind:<14}{found['seconds']:>8.1f}{found['cpu']:>8.1f}{found['peak'] / 1e6:>9,.0f}",
                    flush=True,
                )
            assert len(thresholds) == 1, thresholds
    print("the thresholds are equal to the bit")


if __name__ == "__main__":
    main()
