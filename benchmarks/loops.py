"""Plain loops with full logits, as published code for this method has them: what there is to be faster than.

Written from a description of that code: micro-batches in file order, padded to their longest, logits of every position,
cross-entropy computed twice (by the model for its loss, by the loop for each token).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from forgetting.corpus.tokens import TokenizedSplit
from forgetting.model.language_model import LanguageModel


def padded(split: TokenizedSplit, rows: list[int], device: torch.device) -> dict[str, Tensor]:
    """Input ids, attention mask and labels of some examples, padded to the longest."""
    longest = max(int(split.lengths[i]) for i in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for row, i in enumerate(rows):
        ids, mask = (torch.from_numpy(np.array(a)) for a in (split.input_ids(i), split.response_mask(i)))
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, : len(ids)][mask] = ids.long()[mask]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def every_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each position, 0 where there is no label."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def score(model: LanguageModel, split: TokenizedSplit, batch_size: int) -> np.ndarray:
    """Both models' nll of every response token: `[2, tokens]`."""
    device = next(model.parameters()).device
    model.eval()
    columns: list[np.ndarray] = []
    for reference in (False, True):
        pieces = []
        for first in range(0, len(split), batch_size):
            batch = padded(split, list(range(first, min(first + batch_size, len(split)))), device)
            if reference:
                logits = model.model(**batch).logits
            else:
                with model.adapter_off():
                    logits = model.model(**batch).logits
            nll = every_token(logits, batch["labels"])
            pieces.append(nll[(batch["labels"][:, 1:] != -100).flatten()].cpu().numpy())
        columns.append(np.concatenate(pieces))
    return np.stack(columns)


def train(model: LanguageModel, split: TokenizedSplit, steps: int, batch_size: int = 24, micro_batch: int = 2) -> None:
    """Optimiser steps of `batch_size` sequences, `micro_batch` at a time, each normalised by itself."""
    device = next(model.parameters()).device
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    for step in range(steps):
        optimizer.zero_grad()
        for first in range(step * batch_size, (step + 1) * batch_size, micro_batch):
            batch = padded(split, list(range(first, first + micro_batch)), device)
            output = model.model(**batch)  # with the model's own loss
            nll = every_token(output.logits, batch["labels"])
            loss = nll.sum() / (batch["labels"][:, 1:] != -100).sum()
            (loss * micro_batch / batch_size).backward()
        optimizer.step()
