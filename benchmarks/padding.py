"""Share of padding in training steps and in scoring shards, by token budget; no model is run.

The cut that is used against the fullest: every micro-batch takes as many sequences as the budget holds.
"""

import argparse

import numpy as np
from setting import PROMPT, RESPONSE, word_counts

from forgetting.model.batch import batch_by_tokens


def lengths(num: int) -> np.ndarray:
    """Tokens of sequences with lognormal prompts and responses, as in the other benchmarks."""
    generator = np.random.default_rng(0)
    return word_counts(generator, num, PROMPT) + word_counts(generator, num, RESPONSE)


def fullest(of: np.ndarray, budget: int) -> list[list[int]]:
    """From the longest on, a group takes what the budget holds."""
    order, groups = np.argsort(-of, kind="stable").tolist(), []
    while order:
        size = max(1, budget // int(of[order[0]]))
        groups.append(order[:size])
        order = order[size:]
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4800)
    parser.add_argument("--budgets", type=int, nargs="*", default=[1024, 2048, 8192, 16384])
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--shard-size", type=int, default=512)
    options = parser.parse_args()
    made = lengths(options.examples)
    for budget in options.budgets:
        for name, size in (("training", options.batch_size), ("scoring", options.shard_size)):
            found = []
            for cut in (fullest, batch_by_tokens):
                parts = [made[i : i + size] for i in range(0, len(made), size)]
                groups = [part[group] for part in parts for group in cut(part, budget)]
                padded = sum(len(group) * int(group.max()) for group in groups)
                found.append(f"{1 - made.sum() / padded:6.1%} in {len(groups) / len(parts):5.1f} passes")
            print(f"budget {budget:>6,} {name:<9} fullest {found[0]}, ours {found[1]}")


if __name__ == "__main__":
    main()
