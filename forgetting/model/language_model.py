"""A causal language model that answers one question: the nll of each response token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from forgetting.errors import UserError
from forgetting.model.batch import MicroBatch, shift
from forgetting.model.head import LogitTransform, token_nll, token_nll_and_entropy


class LanguageModel(nn.Module):
    """Backbone and head in one `forward`, so that DDP and FSDP2 see one call.

    Args:
        model: A transformers causal language model, or a PEFT model around one.

    Raises:
        UserError: The model is not causal, does something to its logits that this head does not know, or computes what
            is not a number.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        self.transform = logit_transform(self.causal_lm.config)
        self._check_head()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, without PEFT's wrapping."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def decoder(self) -> nn.Module:
        """Everything below the head."""
        return self.causal_lm.base_model

    @property
    def head(self) -> nn.Module:
        """The LM head."""
        head = self.causal_lm.get_output_embeddings()
        assert isinstance(head, nn.Module), f"{type(self.causal_lm).__name__} has no LM head"
        return head

    def forward(
        self, batch: MicroBatch, entropy: bool = False
    ) -> Float[Tensor, " tokens"] | tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """The nll of each response token in nats, in the row-major order of `batch.response_mask`.

        Args:
            batch: Token ids and which of them are response tokens.
            entropy: Return a pair: the nll, and the entropy of the model's distribution at each response token in nats,
                over the whole vocabulary and without gradient.
        """
        predicts, targets = shift(batch)
        hidden = self.decoder(input_ids=batch.input_ids, use_cache=False)[0]
        # Only these positions reach the head.
        compute = token_nll_and_entropy if entropy else token_nll
        return compute(hidden[predicts], targets, self.head, self.transform)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base model: the same weights, the adapter left out."""
        assert isinstance(self.model, PeftModel), "there is no adapter to leave out"
        with self.model.disable_adapter():
            yield

    @torch.no_grad()
    def base_nll(self, batch: MicroBatch) -> Float[Tensor, " tokens"]:
        """The base model's nll, as `forward` gives it: the adapter left out, and nothing dropped out."""
        was_training = self.training
        self.eval()
        with self.adapter_off():
            nll: Tensor = self(batch)
        self.train(was_training)
        return nll

    def _check_head(self) -> None:
        """Try the model on four tokens, so that no family is silently wrong. The model stays as it was."""
        device = next(self.model.parameters()).device
        if device.type == "meta":
            return
        if self.decoder is self.causal_lm:
            raise UserError(
                f"{type(self.causal_lm).__name__} does not tell its decoder from its head: it cannot be trained here."
            )
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            input_ids = torch.arange(4, device=device)[None] % self.causal_lm.config.get_text_config().vocab_size
            self._refuse_looking_ahead(input_ids)
            self._refuse_unknown_head(input_ids)
        finally:
            for module, training in modes:
                module.training = training

    @torch.enable_grad()
    def _refuse_looking_ahead(self, input_ids: Int[Tensor, "1 time"]) -> None:
        """Refuse a model whose hidden states depend on a later token.

        The gradient of all hidden states but the last with respect to the last token's embedding is zero. Exactly,
        whatever the weights' scale and dtype: attention to a later token has a weight of zero, and what is multiplied
        by it is finite.
        """
        embeddings: list[Tensor] = []

        def record(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            embeddings.append(output.detach().requires_grad_())
            return embeddings[-1]

        hook = self.causal_lm.get_input_embeddings().register_forward_hook(record)
        try:
            hidden = self.decoder(input_ids=input_ids, use_cache=False)[0]
        finally:
            hook.remove()
        # Any direction but a constant one, which a layer norm takes out.
        direction = torch.arange(hidden.numel(), device=hidden.device).view_as(hidden).cos().to(hidden.dtype)
        direction[:, -1] = 0
        (gradient,) = torch.autograd.grad(hidden, embeddings[0], direction)
        if not (hidden.isfinite().all() and gradient.isfinite().all()):
            raise UserError(self._not_finite("hidden states or their gradient"))
        if gradient[0, -1].any():
            raise UserError(
                f"{type(self.causal_lm).__name__} is not causal: a hidden state depends on a later token. A decoder "
                "was expected as model.backbone."
            )

    @torch.no_grad()
    def _refuse_unknown_head(self, input_ids: Int[Tensor, "1 time"]) -> None:
        """Refuse a head whose nll is not that of the model's own logits, to 2% of the largest of them."""
        every = torch.ones_like(input_ids, dtype=torch.bool)
        every[:, 0] = False
        ours = self(MicroBatch(input_ids, every))
        logits = self.causal_lm(input_ids=input_ids, use_cache=False).logits[0, :-1].to(ours.dtype)
        theirs = nn.functional.cross_entropy(logits, input_ids[0, 1:], reduction="none")
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise UserError(self._not_finite(f"nll of three tokens ({ours.tolist()})"))
        if (ours - theirs).abs().max() > 2e-2 * logits.abs().max() + 1e-5:
            raise UserError(
                f"{type(self.causal_lm).__name__} does something to its logits after the head that is not known here "
                f"(nll {theirs.tolist()} by the model, {ours.tolist()} by its head): it cannot be trained exactly."
            )

    def _not_finite(self, what: str) -> str:
        return (
            f"{self.causal_lm.name_or_path or type(self.causal_lm).__name__} gives {what} that are not finite numbers: "
            f"its weights or the adapter's are damaged, or {next(self.causal_lm.parameters()).dtype} is too small for "
            "them. Fetch the model again, or set model.dtype to bfloat16 or float32."
        )


def logit_transform(config: Any) -> LogitTransform:
    """Read from a configuration what the model family does to its logits."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return LogitTransform(float(scale), getattr(config, "final_logit_softcapping", None))  # Gemma 2
