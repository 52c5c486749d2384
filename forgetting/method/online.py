"""Selection in one run: the model that is trained is the reference, on each batch before it has learned from it.

The paper trains twice: a reference model on D_ref, whose reduction of a token's loss is the token's score, and then the
model. In one epoch every batch is seen for the first time, so the model of the moment is a reference that has not seen
it, trained on all batches before: Q = nll_base − nll now. Qin et al. (ICLR 2026, "ssToken") rank the tokens of each
response by it; `scope: example` is that, without their attention score. Here the threshold is the whole corpus's by
default, as in the paper, taken from the steps before.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forgetting.errors import UserError
from forgetting.method.objectives import Objective, both_sides, dual_loss, refuse_coefficient
from forgetting.method.response_tokens import ResponseTokens, Step, StepSums
from forgetting.method.terms import Plain, Power, Term

LIMIT, BINS = 16.0, 4096
"""Scores beyond ± LIMIT nats are counted in the outermost of BINS equal bins."""


class OnlineIgnoring(Objective):
    """Mean nll of those tokens of a batch of which the model has learned most already; the others are dropped.

    Masks depend on the forward pass, but not on how the step is divided: the threshold is that of earlier steps, and
    the loss is divided by ρ · N, the positive tokens expected among the step's N. The first steps, a warm-up, train on
    every token.

    For one epoch: in a second one the model has seen what it scores.

    Args:
        positive_fraction: ρ.
        scope: Rank the tokens of the corpus, by a running threshold, or those of each response apart.
        warmup_fraction: Fraction of the steps, from the first, that train on every token.
        memory: Steps over which the scores behind the threshold fade.
        positive: A term in place of the nll.
    """

    computes_base = True
    selects = True
    counts: Tensor

    def __init__(
        self,
        positive_fraction: float = 0.7,
        scope: Literal["corpus", "example"] = "corpus",
        warmup_fraction: float = 0.1,
        memory: float = 10.0,
        positive: Term | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not 0 < positive_fraction < 1:
            raise UserError(f"{name} has positive_fraction (ρ) {positive_fraction}; expected between 0 and 1.")
        if not 0 <= warmup_fraction < 1:
            raise UserError(f"{name} has warmup_fraction {warmup_fraction}; expected 0 or more, and below 1.")
        if not 1 <= memory < float("inf"):
            raise UserError(f"{name} has memory {memory}; expected 1 step or more.")
        self.positive_fraction, self.scope = positive_fraction, scope
        self.warmup_fraction, self.memory = warmup_fraction, memory
        self.positive = positive or Plain()
        self.columns = tuple(dict.fromkeys(["nll_base", *self.positive.columns]))
        self.needs_entropy = self.positive.needs_entropy
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.float64))

    def select(self, tokens: ResponseTokens, step: Step) -> ResponseTokens:
        """The tokens, positive where Q is above the threshold, or among the highest of its response."""
        if self.is_warmup(step):
            return tokens
        score = self.score(tokens)
        if self.scope == "example":
            positive = top_of_each(score, tokens.example, self.positive_fraction)
        else:
            positive = score > self.threshold
        return replace(tokens, positive_mask=positive, negative_mask=~positive)

    def is_warmup(self, step: Step) -> bool:
        """Whether a step trains on every token; the first always does, since nothing is known then."""
        return step.number < max(1, self.warmup_fraction * step.total)

    @staticmethod
    def score(tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """Q = nll_base − nll now, in nats."""
        return tokens["nll_base"] - tokens.nll.detach()

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """The score that ρ of the tokens of recent steps were above, by their histogram (linear within a bin)."""
        below = self.counts.cumsum(0)
        wanted = (1 - self.positive_fraction) * below[-1]
        place = torch.searchsorted(below, wanted).clamp(max=BINS - 1)  # stays on the device, which is not waited for
        inside = (wanted - torch.where(place > 0, below.take(place - 1), 0)) / self.counts.take(place).clamp(min=1e-9)
        return -LIMIT + (place + inside.clamp(0, 1)) * 2 * LIMIT / BINS

    def num_positive(self, step: Step) -> int | float:
        """Positive tokens that are expected in a step, by which its loss is divided."""
        return step.num_positive if self.is_warmup(step) else self.positive_fraction * step.num_positive

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss, of tokens as `select` gives them."""
        value = self.positive(tokens)
        return dual_loss(value, tokens.positive_mask, tokens.negative_mask, 0.0, self.num_positive(step), 1)

    def statistics(self, tokens: ResponseTokens) -> Float[Tensor, " statistics"]:
        """Counts of the scores in bins; none where responses are ranked by themselves."""
        if self.scope == "example":
            return super().statistics(tokens)
        place = ((self.score(tokens) + LIMIT) * (BINS / (2 * LIMIT))).long().clamp(0, BINS - 1)
        return torch.bincount(place, minlength=BINS).double()

    def after_step(self, sums: StepSums) -> str | None:
        """Let earlier counts fade and add the step's."""
        if self.scope == "corpus":
            self.counts.mul_(1 - 1 / self.memory).add_(sums.statistics.to(self.counts))
        return None

    def metrics(self, step: Step) -> dict[str, float]:
        """The threshold of the step."""
        return {} if self.is_warmup(step) or self.scope == "example" else {"threshold": float(self.threshold)}


class OnlineForgetting(OnlineIgnoring):
    """OnlineIgnoring that unlearns the negative tokens in the last steps.

    λ grows linearly from 0, after `start` of the steps, to t_max at the end. Earlier, what is pushed away would change
    the scores by which it is chosen.

    Args:
        positive_fraction: ρ.
        scope: As in OnlineIgnoring.
        warmup_fraction: As in OnlineIgnoring.
        memory: As in OnlineIgnoring.
        t_max: λ at the end of training.
        start: Fraction of the steps after which unlearning begins.
        negative: A term in place of the negative tokens' nll; by default Power (WGA).
        positive: A term in place of the positive tokens' nll.
    """

    def __init__(
        self,
        positive_fraction: float = 0.7,
        scope: Literal["corpus", "example"] = "corpus",
        warmup_fraction: float = 0.1,
        memory: float = 10.0,
        t_max: float = 1.0,
        start: float = 0.7,
        negative: Term | None = None,
        positive: Term | None = None,
    ) -> None:
        super().__init__(positive_fraction, scope, warmup_fraction, memory, positive)
        self.negative = negative or Power()
        refuse_coefficient(type(self).__name__, 0.0, t_max, self.negative)
        if not warmup_fraction <= start < 1:
            raise UserError(
                f"{type(self).__name__} has start {start}; expected below 1, and no less than warmup_fraction "
                f"({warmup_fraction})."
            )
        self.t_max, self.start = t_max, start
        self.columns = tuple(dict.fromkeys([*self.columns, *self.negative.columns]))
        self.needs_entropy = self.needs_entropy or self.negative.needs_entropy

    def coefficient(self, step: Step) -> float:
        """λ at a step."""
        return self.t_max * max(0.0, step.number / step.total - self.start) / (1 - self.start)

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss, of tokens as `select` gives them."""
        return dual_loss(
            both_sides(tokens, self.positive, self.negative), tokens.positive_mask, tokens.negative_mask,
            self.coefficient(step), self.num_positive(step), (1 - self.positive_fraction) * step.num_positive,
        )  # fmt: skip

    def metrics(self, step: Step) -> dict[str, float]:
        """λ of the step, and the threshold."""
        return {"coefficient": self.coefficient(step), **super().metrics(step)}


def top_of_each(
    score: Float[Tensor, " tokens"], example: Int[Tensor, " tokens"], fraction: float
) -> Bool[Tensor, " tokens"]:
    """The highest round(fraction · n) scores of each example of n tokens; equal ones in their order."""
    falling = score.argsort(descending=True, stable=True)
    order = falling[example[falling].argsort(stable=True)]  # examples in turn, in each by falling score
    counts = torch.bincount(example)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[example[order]]
    return rank < (fraction * counts.double()).round()[example]
