"""The nll of each response token from its hidden state, in chunks, without the logits of more than one chunk.

A frozen head needs no gradient of its weight, so the gradient of a token's nll with respect to its hidden state,
softmax(logits) · W − W[target], is made in the forward pass while the chunk's logits are at hand, and is only scaled in
the backward pass by what the objective sends to that token. So any function of the per-token nll can be trained, for
one product with W forward, one for the gradient and none again.
"""

from dataclasses import dataclass
from typing import Any

import torch
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
        frozen = FrozenHead(weight, head.bias, transform, chunk)
        if torch.is_grad_enabled() and hidden.requires_grad:
            return _FrozenHeadNLL.apply(hidden, targets, frozen)
        return frozen.nll(hidden, targets)

    def piece(h: Tensor, t: Tensor) -> Tensor:
        logits = _transform(head(h), transform)
        return torch.logsumexp(logits, dim=-1) - logits.gather(1, t[:, None])[:, 0]

    def again_in_backward(h: Tensor, t: Tensor) -> Tensor:
        return checkpoint(piece, h, t, use_reentrant=False)

    run = again_in_backward if torch.is_grad_enabled() else piece
    return torch.cat([run(h, t) for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)])


@dataclass(frozen=True)
class FrozenHead:
    """A head whose weight is not trained, worked through in chunks, one after another in the same memory.

    Tensors made anew for each chunk would leave holes between small ones that last; on a CPU the holes add up to the
    size of all logits.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None
    transform: LogitTransform
    chunk: int

    def nll(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        targets: Int[Tensor, " tokens"],
        gradient: Float[Tensor, "tokens hidden"] | None = None,
    ) -> Float[Tensor, " tokens"]:
        """The nll of each target; its gradient with respect to the hidden states is written into `gradient`."""
        # The dtype in which autocast would compute; the weight is cast once, not once a chunk.
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        weight = self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        rows = min(self.chunk, len(hidden))
        product_memory = hidden.new_empty(rows, len(weight), dtype=dtype)
        logits_memory = product_memory if dtype == exact else hidden.new_empty(rows, len(weight), dtype=exact)
        nll = hidden.new_empty(len(hidden), dtype=exact)
        for first in range(0, len(hidden), self.chunk):
            piece = slice(first, first + self.chunk)
            h, t = hidden[piece].to(dtype), targets[piece, None]
            product, logits = product_memory[: len(h)], logits_memory[: len(h)]
            if bias is None:
                torch.mm(h, weight.T, out=product)
            else:
                torch.addmm(bias, h, weight.T, out=product)
            if logits is not product:
                logits.copy_(product)
            slope = self._transform_in_place(logits, gradient is not None)
            # One exponential serves both the nll and its gradient.
            largest, at_target = logits.amax(dim=1, keepdim=True), logits.gather(1, t)
            exponential = logits.sub_(largest).exp_()
            total = exponential.sum(dim=1, keepdim=True)
            nll[piece] = (total.log() + (largest - at_target))[:, 0]
            if gradient is None:
                continue
            # With respect to the logits it is softmax − one-hot.
            slopes = exponential.mul_(total.reciprocal()).scatter_add_(1, t, torch.full_like(total, -1.0))
            if slope is not None:
                slopes.mul_(slope)
            if self.transform.scale != 1.0:
                slopes.mul_(self.transform.scale)
            if product is not logits:
                product.copy_(slopes)
            gradient[piece] = product @ weight
        return nll

    def _transform_in_place(self, logits: Tensor, with_slope: bool) -> Tensor | None:
        """Apply the transform; the derivative of the cap, 1 − tanh², if it is asked for and there is a cap."""
        scale, cap = self.transform.scale, self.transform.cap
        if scale != 1.0:
            logits.mul_(scale)
        if cap is None:
            return None
        logits.div_(cap).tanh_()
        slope = logits.square().neg_().add_(1) if with_slope else None
        logits.mul_(cap)
        return slope


class _FrozenHeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: FrozenHead) -> Tensor:
        ctx.gradient = torch.empty_like(hidden)
        return head.nll(hidden, targets, ctx.gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "the nll can be differentiated once: its gradient was scaled in place; call token_nll again"
            )
        return gradient.mul_(grad_outputs[0][:, None]), None, None


def _transform(logits: Tensor, transform: LogitTransform) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return logits


def _vocab_size(head: nn.Module) -> int:
    size = getattr(head, "out_features", None)
    if size is None:
        raise TypeError(f"the head {type(head).__name__} has no out_features: a linear layer is expected")
    return int(size)
