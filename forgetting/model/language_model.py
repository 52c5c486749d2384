"""A causal language model that answers one question: the nll of each response token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from forgetting.errors import UserError
from forgetting.model.batch import MicroBatch, shift
from forgetting.model.head import LogitTransform, token_nll


class LanguageModel(nn.Module):
    """Backbone and head in one `forward`, so that DDP and FSDP2 see one call.

    Args:
        model: A transformers causal language model, or a PEFT model around one.

    Raises:
        UserError: The model does something to its logits that this head does not know.
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

    def forward(self, batch: MicroBatch) -> Float[Tensor, " tokens"]:
        """The nll of each response token in nats, in the row-major order of `batch.response_mask`."""
        predicts, targets = shift(batch)
        hidden = self.decoder(input_ids=batch.input_ids, use_cache=False)[0]
        # Only these positions reach the head.
        return token_nll(hidden[predicts], targets, self.head, self.transform)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base model: the same weights, the adapter left out."""
        assert isinstance(self.model, PeftModel), "there is no adapter to leave out"
        with self.model.disable_adapter():
            yield

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare head(hidden) with the model's own logits on three tokens, so that no family is silently wrong."""
        device = next(self.model.parameters()).device
        if device.type == "meta":
            return
        training = self.model.training
        self.model.eval()
        input_ids = torch.tensor([[0, 1, 2]], device=device) % self.causal_lm.config.get_text_config().vocab_size
        response_mask = torch.tensor([[False, True, True]], device=device)
        ours = self(MicroBatch(input_ids, response_mask))
        other = input_ids.clone()
        other[0, -1] = 3 % self.causal_lm.config.get_text_config().vocab_size
        changed = self(MicroBatch(other, response_mask))
        logits = self.causal_lm(input_ids=input_ids, use_cache=False).logits[0, :-1]
        theirs = nn.functional.cross_entropy(logits.to(ours.dtype), input_ids[0, 1:], reduction="none")
        self.model.train(training)
        if not torch.allclose(ours[0], changed[0], rtol=2e-2, atol=2e-2):
            raise UserError(
                f"{type(self.causal_lm).__name__} is not causal: another last token changes the nll of an earlier one "
                f"({ours[0].item()} to {changed[0].item()})."
            )
        if not torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2):
            raise UserError(
                f"{type(self.causal_lm).__name__} does something to its logits after the head that is not known here "
                f"(nll {theirs.tolist()} by the model, {ours.tolist()} by its head): it cannot be trained exactly."
            )


def logit_transform(config: Any) -> LogitTransform:
    """What a model family does to its logits, read from its configuration."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return LogitTransform(float(scale), getattr(config, "final_logit_softcapping", None))  # Gemma 2
