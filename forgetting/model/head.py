"""The nll of each response token from its hidden state, tile by tile: no more than one tile of the logits ever exists.

The entropy of the model's distribution at the token, where it is asked for, comes from the same pass.

A tile is some tokens by some of the vocabulary. Going along the vocabulary, the sum of exponentials is kept relative to
the largest logit so far and rescaled when a larger one comes (Milakov and Gimelshein, 2018).

A frozen head needs no gradient of its weight, so the gradient of a token's nll with respect to its hidden state,
softmax(logits) · W − W[target], is made in the forward pass while the tile's logits are at hand, and is only scaled in
the backward pass by what the objective sends to that token. So any function of the per-token nll can be trained, for
one product with W forward, one for the gradient and none again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TILES = {"cpu": (1024, 2048), "cuda": (4096, 65_536)}
"""Tokens and vocabulary entries of a tile, see docs/performance.md: in cache on a CPU, 1 GB of float32 on a GPU."""


@dataclass(frozen=True)
class LogitTransform:
    """Function of the logits that some models put after the head: logits · scale, then cap · tanh(logits / cap)."""

    scale: float = 1.0
    cap: float | None = None


def token_nll(
    hidden: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    head: nn.Module,
    transform: LogitTransform = LogitTransform(),
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, " tokens"]:
    """Negative log-likelihood of each target, ℓ of Taheri et al. (TMLR 2026), Eq. 3.

    Args:
        hidden: Hidden state that predicts each target.
        targets: Token ids.
        head: The LM head: a linear layer, tied or not, with or without bias. A frozen one takes the fast path; one
            that is trained, wrapped or quantized is called as it is, on as many tokens as fill a tile (256 at least);
            its logits are made again in the backward pass.
        transform: What the model does to its logits after the head.
        tile: Tokens and vocabulary entries whose logits exist at once; by default what suits the device.

    Returns:
        In nats, float32 (float64 for float64 hidden states).
    """
    return _nll_and_entropy(hidden, targets, head, transform, tile, with_entropy=False)[0]


def token_nll_and_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    head: nn.Module,
    transform: LogitTransform = LogitTransform(),
    tile: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Compute `token_nll`, the same bits, and in the same pass the entropy of the distribution that each target is of.

    The entropy is H = −Σ p · log p over the whole vocabulary, in nats, of the transformed logits. It is never negative,
    an entry whose logit is −∞ contributes 0, and it carries no gradient. It takes memory for one more tile.
    """
    nll, entropy = _nll_and_entropy(hidden, targets, head, transform, tile, with_entropy=True)
    assert entropy is not None
    return nll, entropy


def _nll_and_entropy(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Module,
    transform: LogitTransform,
    tile: tuple[int, int] | None,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    weight = getattr(head, "weight", None)
    tile = tile or TILES.get(hidden.device.type, TILES["cuda"])
    if type(head) is nn.Linear and isinstance(weight, Tensor) and not weight.requires_grad:
        frozen = FrozenHead(weight, head.bias, transform, tile)
        if torch.is_grad_enabled() and hidden.requires_grad:
            return _FrozenHeadNLL.apply(hidden, targets, frozen, with_entropy)
        return frozen.nll_and_entropy(hidden, targets, with_entropy=with_entropy)

    def piece(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = _transform(head(h), transform)
        nll = torch.logsumexp(logits, dim=-1) - logits.gather(1, t[:, None])[:, 0]
        # Last: what is made again in the backward pass ends with what the gradient needs.
        return nll, _entropy(logits.detach()) if with_entropy else None

    def again_in_backward(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        return checkpoint(piece, h, t, use_reentrant=False)

    chunk = max(256, tile[0] * tile[1] // _vocab_size(head))
    run = again_in_backward if torch.is_grad_enabled() else piece
    pieces = [run(h, t) for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)]
    entropies = [entropy for _, entropy in pieces if entropy is not None]
    return torch.cat([nll for nll, _ in pieces]), torch.cat(entropies) if with_entropy else None


def reference_token_nll(
    hidden: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    head: nn.Module,
    transform: LogitTransform = LogitTransform(),
) -> Float[Tensor, " tokens"]:
    """Compute what `token_nll` does, by its definition: all logits at once, −log softmax at the target."""
    logits = _transform(head(hidden), transform)
    return -torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]


@dataclass(frozen=True)
class FrozenHead:
    """A head whose weight is not trained, worked through tile by tile in the same memory.

    New tensors for each tile would leave holes between small ones that last; on a CPU the holes add up to the
    size of all logits.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None
    transform: LogitTransform
    tile: tuple[int, int]

    def nll_and_entropy(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        targets: Int[Tensor, " tokens"],
        gradient: Float[Tensor, "tokens hidden"] | None = None,
        with_entropy: bool = False,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
        """Compute the nll of each target; its gradient with respect to the hidden states is written into `gradient`.

        The entropy is None where it is not asked for.
        """
        # The dtype in which autocast would compute; the weight is cast once, not once per tile.
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        weight = self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        nll = hidden.new_empty(len(hidden), dtype=exact)
        entropy = torch.empty_like(nll) if with_entropy else None
        # Pieces of equal size: a last one of few tokens would cost as much of the weight's way through the cache.
        pieces = max(1, -(-len(hidden) // self.tile[0]))
        rows, columns = max(1, -(-len(hidden) // pieces)), min(self.tile[1], len(weight))
        product_memory = hidden.new_empty(rows * columns, dtype=dtype)
        logits_memory = product_memory if dtype == exact else hidden.new_empty(rows * columns, dtype=exact)
        # The exponentials replace the logits; the entropy needs both.
        shifted_memory = torch.empty_like(logits_memory) if with_entropy else logits_memory
        for_gradient = (0 if gradient is None else rows), hidden.shape[1]
        sums_memory = hidden.new_empty(for_gradient, dtype=exact)
        target_memory = hidden.new_empty(for_gradient, dtype=dtype)
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            h, t = hidden[piece].to(dtype), targets[piece, None]
            # The least finite number, not −∞: −∞ − (−∞), where all of a tile's logits are −∞, is not a number.
            largest = torch.full((len(h), 1), torch.finfo(exact).min, dtype=exact, device=hidden.device)
            others, at_target = torch.zeros_like(largest), torch.zeros_like(largest)
            spread = torch.zeros_like(largest)
            sums = sums_memory[: len(h)].zero_()
            # One pass along the vocabulary, tile by tile. It keeps per token, of the tiles so far: the largest logit,
            # the sum of exp(logit − largest) over all entries but the target (`others`), and this sum weighted by the
            # rows of W (`sums`). Where a tile brings a larger logit, both sums are scaled by exp(old − new largest).
            # For the entropy, also the others' sum of exp(logit − largest) · (largest − logit) (`spread`).
            for first in range(0, len(weight), columns):
                block = weight[first : first + columns]
                shape = len(h), len(block)
                product, logits, shifted = (
                    memory[: shape[0] * shape[1]].view(shape)
                    for memory in (product_memory, logits_memory, shifted_memory)
                )
                if bias is None:
                    torch.mm(h, block.T, out=product)
                else:
                    torch.addmm(bias[first : first + columns], h, block.T, out=product)
                if dtype != exact:
                    logits.copy_(product)
                slope = self._transform_in_place(logits, gradient is not None)
                larger = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
                shrink = (largest - larger).exp_()
                # The target stays out of the sums, so that a sure token's small gradient is no difference of two large
                # numbers.
                column = (t - first).clamp(0, len(block) - 1)
                here, logit = column == t - first, logits.gather(1, column)
                at_target = torch.where(here, logit, at_target)
                logits.scatter_(1, column, logit.masked_fill(here, -torch.inf))
                # The nll needs this exponential and so does its gradient.
                exponential = torch.exp(torch.sub(logits, larger, out=shifted), out=logits)
                if entropy is not None:
                    # With a larger logit each of the old terms grows by exp · (new − old largest), that is by
                    # −exp · log(shrink) before it is scaled; entr(x) = −x · log(x), 0 at 0. A logit of −∞ is
                    # 0 · −∞ here, not a number, which nansum takes as the 0 that it is in the limit.
                    spread.mul_(shrink).addcmul_(torch.special.entr(shrink), others)
                    spread.sub_(shifted.mul_(exponential).nansum(dim=1, keepdim=True))
                others.mul_(shrink).add_(exponential.sum(dim=1, keepdim=True))
                largest = larger
                if gradient is None:
                    continue
                # Σ exp(logit) · slope · W over the others: divided by the total, Σ softmax · slope · W.
                if slope is not None:
                    exponential.mul_(slope)
                sums.mul_(shrink)
                if dtype == exact:
                    sums.addmm_(exponential, block)
                else:
                    sums.add_(product.copy_(exponential) @ block)
            of_target = at_target - largest
            total = others + of_target.exp()
            # For a sure token `of_target` is 0 and the total 1 + `others`: its small nll is exact, too.
            log_total = (others + of_target.expm1()).log1p()
            nll[piece] = (log_total - of_target)[:, 0]
            if entropy is not None:
                # log(total) + mean of (largest − logit): both terms are at least 0, so nothing cancels.
                entropy[piece] = (log_total + (spread + torch.special.entr(of_target.exp())) / total)[:, 0]
            if gradient is not None:
                # With respect to its own logit it is softmax − 1, minus the others' share.
                if self.transform.cap is not None:
                    others.mul_(1 - (at_target / self.transform.cap).square())
                target_rows = torch.index_select(weight, 0, t[:, 0], out=target_memory[: len(h)])
                sums.addcmul_(target_rows.to(exact), others, value=-1)
                gradient[piece] = sums.mul_(self.transform.scale / total)
        return nll, entropy

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
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: FrozenHead, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.gradient = torch.empty_like(hidden)
        nll, entropy = head.nll_and_entropy(hidden, targets, ctx.gradient, with_entropy)
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return nll, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "the nll can be differentiated once: its gradient was scaled in place; call token_nll again"
            )
        return gradient.mul_(grad_outputs[0][:, None]), None, None, None


def _transform(logits: Tensor, transform: LogitTransform) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return logits


@torch.no_grad()
def _entropy(logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
    """Entropy of softmax(logits) in nats: log Σ exp(z) − Σ p · z with z relative to the largest logit."""
    relative = logits - logits.amax(dim=-1, keepdim=True)
    exponential = relative.exp()
    total = exponential.sum(dim=-1)
    return total.log() - relative.mul_(exponential).nansum(dim=-1) / total  # an entry of −∞ contributes 0


def _vocab_size(head: nn.Module) -> int:
    size = getattr(head, "out_features", None)
    if size is None:
        raise TypeError(f"the head {type(head).__name__} has no out_features: a linear layer is expected")
    return int(size)
