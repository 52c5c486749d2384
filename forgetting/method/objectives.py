"""The paper's objective and its baselines: functions of the per-token nll, usable from any trainer."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from forgetting.errors import UserError

Schedule = Literal["paper", "ramp", "constant"]


def dual_loss(
    nll: Float[Tensor, " tokens"],
    positive_mask: Bool[Tensor, " tokens"],
    negative_mask: Bool[Tensor, " tokens"],
    coefficient: float,
    num_positive: int,
    num_negative: int,
) -> Float[Tensor, ""]:
    """Learn the positive tokens, forget the negative ones.

    Taheri et al. (TMLR 2026), Eq. 8: mean nll over positive − λ · mean nll over negative. The counts are the whole
    optimiser step's, so the parts of a step add up to the step. A count of zero contributes zero.

    Args:
        nll: Negative log-likelihood of each response token, in nats.
        positive_mask: Tokens to learn.
        negative_mask: Tokens to forget; disjoint from `positive_mask`.
        coefficient: λ ≥ 0. The second term has no lower bound: a large λ lets it dominate.
        num_positive: Positive tokens in the optimiser step.
        num_negative: Negative tokens in the optimiser step.

    Returns:
        This part's share of the loss, in nats a token.
    """
    # One weight a token rather than two masked sums: tokens of neither side get exactly no gradient.
    weight = positive_mask.to(nll.dtype) / max(num_positive, 1)
    if coefficient:
        weight = weight - negative_mask.to(nll.dtype) * (coefficient / max(num_negative, 1))
    return (weight * nll).sum()


def scheduled_coefficient(
    step: int, total_steps: int, t_min: float, t_max: float, schedule: Schedule = "paper"
) -> float:
    """λ(step), the weight of the negative term.

    Taheri et al. (TMLR 2026), §4.3: (t_max − t_min) · step / total_steps. It starts at 0, not at t_min, which only
    shrinks the slope. `ramp` adds t_min; `constant` is t_max at every step (Table 10).

    Args:
        step: Optimiser steps done, from 0.
        total_steps: Optimiser steps of the run.
        t_min: See above.
        t_max: See above.
        schedule: See above.
    """
    if schedule == "constant":
        return t_max
    slope = (t_max - t_min) * step / total_steps
    return t_min + slope if schedule == "ramp" else slope


class Objective:
    """A loss over the response tokens of an optimiser step: Eq. 8 with a coefficient that subclasses choose.

    A subclass may also replace `__call__` by any other function of the per-token nll.
    """

    def coefficient(self, step: int, total_steps: int) -> float:
        """λ at a step; 0 for an objective that forgets nothing."""
        return 0.0

    def __call__(
        self,
        nll: Float[Tensor, " tokens"],
        positive_mask: Bool[Tensor, " tokens"],
        negative_mask: Bool[Tensor, " tokens"],
        coefficient: float,
        num_positive: int,
        num_negative: int,
    ) -> Float[Tensor, ""]:
        """A part's share of the step's loss; arguments as in `dual_loss`."""
        return dual_loss(nll, positive_mask, negative_mask, coefficient, num_positive, num_negative)


class Ignoring(Objective):
    """Data selection: the mean nll of the positive tokens; λ = 0, so the negative ones are dropped."""


class Forgetting(Objective):
    """Learn the positive tokens and forget the negative ones (Eq. 8).

    Args:
        t_min: Shrinks the slope of λ (§4.3); (1e-5, 0.25) for LLaMA-3.2-1B, (1e-4, 0.25) for larger models (§5.1.3).
        t_max: λ at the end of training, at most 1. The negative term has no lower bound: above 1 it would outweigh the
            positive one, and no minimum would be left.
        schedule: `paper`, `ramp` or `constant`; see `scheduled_coefficient`.
    """

    def __init__(self, t_min: float = 1e-4, t_max: float = 0.25, schedule: Schedule = "paper") -> None:
        if not 0 <= t_min <= t_max <= 1:  # false for NaN and infinity too
            raise UserError(
                f"Forgetting has t_min {t_min} and t_max {t_max}; 0 ≤ t_min ≤ t_max ≤ 1 is expected: λ grows with "
                "training, must not be negative, and above 1 would weigh forgetting more than learning. Another λ "
                "needs an objective of its own (a subclass of Objective)."
            )
        self.t_min = t_min
        self.t_max = t_max
        self.schedule: Schedule = schedule

    def coefficient(self, step: int, total_steps: int) -> float:
        """λ at a step."""
        return scheduled_coefficient(step, total_steps, self.t_min, self.t_max, self.schedule)


class FullTokens(Objective):
    """Standard fine-tuning: the mean nll of every response token, whatever its side (Eq. 1)."""

    def __call__(
        self,
        nll: Float[Tensor, " tokens"],
        positive_mask: Bool[Tensor, " tokens"],
        negative_mask: Bool[Tensor, " tokens"],
        coefficient: float,
        num_positive: int,
        num_negative: int,
    ) -> Float[Tensor, ""]:
        """A part's share of the step's loss; arguments as in `dual_loss`."""
        every = positive_mask | negative_mask
        return dual_loss(nll, every, ~every, 0.0, num_positive + num_negative, 0)
