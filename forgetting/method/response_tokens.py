"""What is known of a micro-batch's response tokens and of the optimizer step that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from forgetting.errors import UserError


@dataclass(frozen=True)
class Step:
    """An optimizer step, as every rank knows it before its first forward pass.

    Attributes:
        number: Optimizer steps done before it, from 0.
        total: Optimizer steps of the run.
        num_positive: Positive tokens of the step, over all micro-batches and ranks.
        num_negative: Negative tokens of the step, likewise.
    """

    number: int
    total: int
    num_positive: int
    num_negative: int


@dataclass(frozen=True)
class ResponseTokens:
    """The response tokens of a micro-batch, with everything that is known of them.

    Attributes:
        nll: Negative log-likelihood under the model that is trained, in nats; carries the gradient.
        positive_mask: Tokens to train on.
        negative_mask: Tokens to unlearn; disjoint from `positive_mask`. A token of neither is ignored.
        example: Which example of the micro-batch each token belongs to, from 0. Examples are never divided.
        columns: Stored columns by name, those that the objective asks for; `tokens["nll_base"]` is one of them.
        entropy: Entropy of the model's distribution at each token, in nats, without gradient; None unless the objective
            asks for it.
    """

    nll: Float[Tensor, " tokens"]
    positive_mask: Bool[Tensor, " tokens"]
    negative_mask: Bool[Tensor, " tokens"]
    example: Int[Tensor, " tokens"]
    columns: Mapping[str, Float[Tensor, " tokens"]] = field(default_factory=dict)
    entropy: Float[Tensor, " tokens"] | None = None

    def __getitem__(self, column: str) -> Float[Tensor, " tokens"]:
        """A stored column.

        Raises:
            UserError: The objective did not ask for it.
        """
        if column not in self.columns:
            raise UserError(
                f"The objective reads the column {column!r} without asking for it: name it in its class attribute "
                f"`columns` (there: {', '.join(self.columns) or 'none'})."
            )
        return self.columns[column]


@dataclass(frozen=True)
class StepSums:
    """Sums of an optimizer step over all its micro-batches and ranks, the same on every rank.

    Attributes:
        step: The step.
        loss: Its loss.
        nll_positive: Σ nll of its positive tokens, in nats, before the step.
        nll_negative: Σ nll of its negative tokens.
        statistics: Σ of what the objective's `statistics` gave for each micro-batch, float64.
    """

    step: Step
    loss: float
    nll_positive: float
    nll_negative: float
    statistics: Float[Tensor, " statistics"]
