"""The nll of each response token from its hidden state, in chunks, without the logits of more than one chunk.

A frozen head needs no gradient of its weight, so the gradient of a token's nll with respect to its hidden state,
softmax(logits) · W − W[target], is made in the forward pass while the chunk's logits are at hand, and is only scaled in
the backward pass by what the objective sends to that token. So any function of the per-token nll can be trained, for
one product with W forward, one for the gradient and none again.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Size of a chunk's float32 logits: small on a CPU, where they should stay in cache, large on a GPU."""


@dataclass(frozen=True)
class LogitTransform:
    """What some models do to their logits after the head: logits · scale, then cap · tanh(logits / cap)."""

    scale: float = 1.0
    cap: float | None = None


def chunk_size(vocab_size: int, device: torch.device) -> int:
    """Tokens a chunk, so that its logits fit the device's cache (CPU) or a modest share of its memory (GPU)."""
    return max(32, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocab_size))


def token_nll(
    hidden: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    head: nn.Module,
    transform: LogitTransform = LogitTransform(),
    chunk: int | None = None,
) -> Float[Tensor, " tokens"]:
    """Negative log-likelihood of each target, ℓ of Taheri et al. (TMLR 2026), Eq. 3.

    Args:
        hidden: Hidden state that predicts each target.
        targets: Token ids.
        head: The LM head: a linear layer, tied or not, with or without bias. A frozen one takes the fast path; one
            that is trained, wrapped or quantised is called as it is; its logits are made again in the backward pass.
        transform: What the model does to its logits after the head.
        chunk: Tokens whose logits exist at once; by default what suits the device.

    Returns:
        In nats, float32 (float64 for float64 hidden states).
    """
    weight = getattr(head, "weight", None)
    chunk = chunk or chunk_size(_vocab_size(head), hidden.device)
    if type(head) is nn.Linear and isinstance(weight, Tensor) and not weight.requires_grad:
        bias = head.bias
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            pieces = [
                _nll_and_softmax(_logits(h, weight, bias, transform), t)[0]
                for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
            ]
            return torch.cat(pieces) if pieces else _nothing(hidden)
        return _FrozenHeadNLL.apply(hidden, weight, bias, targets, transform, chunk)

    def piece(h: Tensor, t: Tensor) -> Tensor:
        logits = _transform(head(h), transform)
        return torch.logsumexp(logits, dim=-1) - logits.gather(1, t[:, None])[:, 0]

    def again_in_backward(h: Tensor, t: Tensor) -> Tensor:
        return checkpoint(piece, h, t, use_reentrant=False)

    run = again_in_backward if torch.is_grad_enabled() else piece
    return torch.cat([run(h, t) for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)])


class _FrozenHeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
        transform: LogitTransform, chunk: int,
    ) -> Tensor:  # fmt: skip
        nll, gradient = [], torch.empty_like(hidden)
        for h, t, out in zip(hidden.split(chunk), targets.split(chunk), gradient.split(chunk), strict=True):
            logits = _logits(h, weight, bias, transform)
            slope = None
            if transform.cap is not None:  # the derivative of the cap, 1 − tanh² = 1 − (capped logits / cap)²
                slope = 1 - (logits / transform.cap).square_()
            loss, exponential, total = _nll_and_softmax(logits, t)
            nll.append(loss)
            # The gradient with respect to the logits, in place of the logits: softmax − one-hot.
            probability = exponential.mul_(total.reciprocal()[:, None])
            probability.scatter_add_(1, t[:, None], torch.full_like(loss, -1.0)[:, None])
            if slope is not None:
                probability.mul_(slope)
            if transform.scale != 1.0:
                probability.mul_(transform.scale)
            out.copy_(probability.to(weight.dtype) @ weight)
        ctx.save_for_backward(gradient)
        return torch.cat(nll) if nll else _nothing(hidden)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_outputs[0][:, None]).to(gradient.dtype), None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Logits of a chunk in at least float32, in memory of their own."""
    return _transform(F.linear(hidden.to(weight.dtype), weight, bias), transform)


def _transform(logits: Tensor, transform: LogitTransform) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return logits


def _nll_and_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nll, and softmax as exponentials and their sum, in place of the logits: one exponential serves for both."""
    largest = logits.amax(dim=-1)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    exponential = logits.sub_(largest[:, None]).exp_()
    total = exponential.sum(dim=-1)
    return total.log() + (largest - at_target), exponential, total


def _nothing(hidden: Tensor) -> Tensor:
    return hidden.new_zeros(0, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)


def _vocab_size(head: nn.Module) -> int:
    size = getattr(head, "out_features", None)
    if size is None:
        raise TypeError(f"the head {type(head).__name__} has no out_features: a linear layer is expected")
    return int(size)
