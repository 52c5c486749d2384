"""Objectives: from the nll of response tokens to the loss of an optimizer step (Taheri et al., TMLR 2026, Eq. 1 and 8).

An objective sees a micro-batch at a time, with the counts of the whole optimizer step, and returns its share: the
shares of a step add up to the step's loss, however the step is divided into micro-batches and ranks. One of your own is
a subclass of `Objective` in any module, named by `model.objective.class_path` (docs/extending.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from forgetting.errors import UserError

Schedule = Literal["paper", "ramp", "constant"]


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
        entropy: Entropy of the model's distribution at the token in nats, over the whole vocabulary; detached. There
            only if the objective's class attribute `needs_entropy` is true.
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
    """

    step: Step
    loss: float
    nll_positive: float
    nll_negative: float


class Objective(nn.Module):
    """A loss over the response tokens of an optimizer step.

    What it learns or remembers belongs into parameters and buffers: they are in the run's checkpoint, and a killed run
    resumes with the same bits. Parameters are trained by the same optimizer as the adapter.

    Attributes:
        columns: Stored columns that `forward` reads. They need a score store, also where every token is positive.
        needs_negative: Whether it means nothing without negative tokens: it is then refused at ρ = all.
        needs_entropy: Whether `forward` reads `tokens.entropy`, which is computed only then.
    """

    columns: tuple[str, ...] = ()
    needs_negative: bool = False
    needs_entropy: bool = False

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss; the shares of a step add up to its loss."""
        raise NotImplementedError

    def after_step(self, sums: StepSums) -> None:
        """Update state from the step's sums. They are reduced over ranks for objectives that override this alone."""

    def metrics(self, step: Step) -> dict[str, float]:
        """Numbers of its own to log with a step, such as λ."""
        return {}


def dual_loss(
    nll: Float[Tensor, " tokens"],
    positive_mask: Bool[Tensor, " tokens"],
    negative_mask: Bool[Tensor, " tokens"],
    coefficient: float | Float[Tensor, ""],
    num_positive: int,
    num_negative: int,
) -> Float[Tensor, ""]:
    """Train on the positive tokens, unlearn the negative ones.

    Taheri et al. (TMLR 2026), Eq. 8: mean nll over positive − λ · mean nll over negative. The counts are the whole
    optimizer step's, so the shares of a step add up to the step. A count of zero contributes zero.

    Args:
        nll: Negative log-likelihood of each response token, in nats; or what is put in its place (a bounded function
            of it at the negative tokens, say).
        positive_mask: Tokens to train on.
        negative_mask: Tokens to unlearn; disjoint from `positive_mask`.
        coefficient: λ ≥ 0. The second term has no lower bound: a large λ lets it dominate.
        num_positive: Positive tokens in the optimizer step.
        num_negative: Negative tokens in the optimizer step.

    Returns:
        This micro-batch's share of the loss, in nats per token.
    """
    # One weight per token rather than two masked sums: tokens of neither mask get exactly no gradient.
    weight = positive_mask.to(nll.dtype) / max(num_positive, 1)
    if isinstance(coefficient, Tensor) or coefficient:
        weight = weight - negative_mask.to(nll.dtype) * (coefficient / max(num_negative, 1))
    return (weight * nll).sum()


def scheduled_coefficient(
    step: int, total_steps: int, t_min: float, t_max: float, schedule: Schedule = "paper"
) -> float:
    """λ(step), the weight of the negative term.

    Taheri et al. (TMLR 2026), §4.3: (t_max − t_min) · step / total_steps. It starts at 0, not at t_min, which only
    shrinks the slope. `ramp` adds t_min; `constant` is t_max at every step (Table 10).

    Args:
        step: Optimizer steps done, from 0.
        total_steps: Optimizer steps of the run.
        t_min: See above.
        t_max: See above.
        schedule: See above.
    """
    if schedule == "constant":
        return t_max
    slope = (t_max - t_min) * step / total_steps
    return t_min + slope if schedule == "ramp" else slope


class MeanNLL(Objective):
    """Mean nll of the positive tokens; the others are dropped.

    Full Tokens (Eq. 1, standard fine-tuning) where every token is positive (`data.positive_fraction: all`), Ignoring
    where the top-ρ fraction is (Eq. 8 at λ = 0).
    """

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss."""
        return dual_loss(
            tokens.nll, tokens.positive_mask, tokens.negative_mask, 0.0, step.num_positive, step.num_negative
        )


class Forgetting(Objective):
    """Train on the positive tokens and unlearn the negative ones (Eq. 8), λ growing with the steps (§4.3).

    Args:
        t_min: Shrinks the slope of λ; (1e-5, 0.25) for LLaMA-3.2-1B, (1e-4, 0.25) for larger models (§5.1.3).
        t_max: λ at the end of training, at most 1. The negative term has no lower bound: above 1 it would outweigh the
            positive one, and no minimum would be left.
        schedule: `paper`, `ramp` or `constant`; see `scheduled_coefficient`.
    """

    needs_negative = True

    def __init__(self, t_min: float = 1e-4, t_max: float = 0.25, schedule: Schedule = "paper") -> None:
        super().__init__()
        if not 0 <= t_min <= t_max <= 1:  # false for NaN and infinity too
            raise UserError(
                f"Forgetting has t_min {t_min} and t_max {t_max}; 0 ≤ t_min ≤ t_max ≤ 1 is expected: λ grows with "
                "training, must not be negative, and above 1 would weigh unlearning more than learning. Another λ "
                "needs an objective of its own (a subclass of Objective)."
            )
        self.t_min = t_min
        self.t_max = t_max
        self.schedule: Schedule = schedule

    def coefficient(self, step: Step) -> float:
        """λ at a step."""
        return scheduled_coefficient(step.number, step.total, self.t_min, self.t_max, self.schedule)

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss."""
        return dual_loss(
            tokens.nll, tokens.positive_mask, tokens.negative_mask, self.coefficient(step), step.num_positive,
            step.num_negative,
        )  # fmt: skip

    def metrics(self, step: Step) -> dict[str, float]:
        """λ of the step."""
        return {"coefficient": self.coefficient(step)}
