"""Objectives: from the nll of response tokens to the loss of an optimizer step (Taheri et al., TMLR 2026, Eq. 1 and 8).

An objective sees a micro-batch at a time, with the counts of the whole optimizer step, and returns its share: the
shares of a step add up to the step's loss, however the step is divided into micro-batches and ranks. One of your own is
a subclass of `Objective` in any module, named by `model.objective.class_path` (docs/extending.md).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from forgetting.errors import UserError
from forgetting.method.response_tokens import ResponseTokens, Step, StepSums
from forgetting.method.terms import Plain, Power, Term

Schedule = Literal["paper", "ramp", "constant"]


class Objective(nn.Module):
    """A loss over the response tokens of an optimizer step.

    What it learns or remembers belongs into parameters and buffers: they are in the run's checkpoint, and a killed run
    resumes with the same bits. Parameters are trained by the same optimizer as the adapter.

    Attributes:
        columns: Stored columns that `forward` reads. They need a score store, also where every token is positive.
        needs_negative: Whether it means nothing without negative tokens: it is then refused at ρ = all.
        needs_entropy: Whether it reads `tokens.entropy`, which the head then makes with the nll.
        computes_base: Whether its column `nll_base` is computed, by a pass of the base model over each micro-batch that
            takes about a third of a step, and not read from a store.
        selects: Whether it chooses the positive and negative tokens by itself, in one epoch over all of them.
    """

    columns: tuple[str, ...] = ()
    needs_negative: bool = False
    needs_entropy: bool = False
    computes_base: bool = False
    selects: bool = False

    def select(self, tokens: ResponseTokens, step: Step) -> ResponseTokens:
        """The tokens with the masks that count: those of the data, or of an objective that selects by itself."""
        return tokens

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss; the shares of a step add up to its loss."""
        raise NotImplementedError

    def statistics(self, tokens: ResponseTokens) -> Float[Tensor, " statistics"]:
        """What `after_step` needs to know of a micro-batch: float64, added up over micro-batches and ranks."""
        return torch.zeros(0, dtype=torch.float64, device=tokens.nll.device)

    def after_step(self, sums: StepSums) -> str | None:
        """Update state from the step's sums, which are reduced over ranks for objectives that override this alone.

        Returns:
            A line to be printed, if something has happened that whoever runs it should know.
        """

    def metrics(self, step: Step) -> dict[str, float]:
        """Numbers of its own to log with a step, such as λ."""
        return {}

    def extra_repr(self) -> str:
        """The terms that it has in place of the nll, for whoever runs it."""
        terms = {name: value for name, value in vars(self).items() if isinstance(value, Term) and value != Plain()}
        return ", ".join(f"{name}={value}" for name, value in terms.items())


def dual_loss(
    nll: Float[Tensor, " tokens"],
    positive_mask: Bool[Tensor, " tokens"],
    negative_mask: Bool[Tensor, " tokens"],
    coefficient: float | Float[Tensor, ""],
    num_positive: int | float,
    num_negative: int | float,
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
        num_positive: Positive tokens in the optimizer step, or how many are expected.
        num_negative: Negative tokens in the optimizer step, likewise.

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

    Args:
        positive: A term in place of the nll, such as Power (DFT) or EntropyAdaptive.
    """

    def __init__(self, positive: Term | None = None) -> None:
        super().__init__()
        self.positive = positive or Plain()
        self.columns, self.needs_entropy = self.positive.columns, self.positive.needs_entropy

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss."""
        value = self.positive(tokens)
        return dual_loss(value, tokens.positive_mask, tokens.negative_mask, 0.0, step.num_positive, step.num_negative)


class Forgetting(Objective):
    """Train on the positive tokens and unlearn the negative ones (Eq. 8), λ growing with the steps (§4.3).

    Args:
        t_min: Shrinks the slope of λ; (1e-5, 0.25) for LLaMA-3.2-1B, (1e-4, 0.25) for larger models (§5.1.3).
        t_max: λ at the end of training, at most 1 with a negative term that does not fade: it has no lower bound, above
            1 it would outweigh the positive one, and no minimum would be left.
        schedule: `paper`, `ramp` or `constant`; see `scheduled_coefficient`.
        negative: A term in place of the negative tokens' nll (`terms.py`); by default Plain, the paper's.
        positive: A term in place of the positive tokens' nll.
    """

    needs_negative = True

    def __init__(
        self,
        t_min: float = 1e-4,
        t_max: float = 0.25,
        schedule: Schedule = "paper",
        negative: Term | None = None,
        positive: Term | None = None,
    ) -> None:
        super().__init__()
        self.negative, self.positive = negative or Plain(), positive or Plain()
        self.columns = tuple(dict.fromkeys([*self.positive.columns, *self.negative.columns]))
        self.needs_entropy = self.positive.needs_entropy or self.negative.needs_entropy
        refuse_coefficient(type(self).__name__, t_min, t_max, self.negative)
        self.t_min = t_min
        self.t_max = t_max
        self.schedule: Schedule = schedule

    def coefficient(self, step: Step) -> float:
        """λ at a step."""
        return scheduled_coefficient(step.number, step.total, self.t_min, self.t_max, self.schedule)

    def forward(self, tokens: ResponseTokens, step: Step) -> Float[Tensor, ""]:
        """A micro-batch's share of the step's loss."""
        return dual_loss(
            both_sides(tokens, self.positive, self.negative), tokens.positive_mask, tokens.negative_mask,
            self.coefficient(step), step.num_positive, step.num_negative,
        )  # fmt: skip

    def metrics(self, step: Step) -> dict[str, float]:
        """λ of the step."""
        return {"coefficient": self.coefficient(step)}


class ConstrainedForgetting(Forgetting):
    """Forgetting whose λ is found by a constraint: unlearning may cost the positive tokens at most ε nats.

    With m the running mean over steps of nll − nll_base of the positive tokens, λ follows from the last step's by

        λ ← min(t_max, max(0, λ + t_max / total · (1 − (m − least m so far) / ε)))

    which is projected ascent on the dual variable of m ≤ least m + ε. While the positive tokens get no worse, λ grows
    as the paper's schedule does; at ε nats above their best it stands still, beyond it falls. The base model's nll is
    taken off since it makes batches comparable: what is left of their difference is what training did.

    Args:
        epsilon: ε, in nats per positive token.
        t_max: Largest λ, reached at the end of training if unlearning costs nothing.
        memory: Steps over which m is a running mean.
        negative: A term in place of the negative tokens' nll; by default Power (WGA), since λ answers only after a
            step, and a term that does not fade may have done its damage by then.
        positive: A term in place of the positive tokens' nll.
    """

    strength: Tensor
    running: Tensor
    least: Tensor
    has_fallen: Tensor

    def __init__(
        self,
        epsilon: float = 0.05,
        t_max: float = 1.0,
        memory: float = 20.0,
        negative: Term | None = None,
        positive: Term | None = None,
    ) -> None:
        super().__init__(0.0, t_max, "paper", negative or Power(), positive)
        if not (0 < epsilon < math.inf and 1 <= memory < math.inf):
            raise UserError(
                f"ConstrainedForgetting has epsilon {epsilon} and memory {memory}; expected above 0 nats, and at least "
                "1 step."
            )
        self.columns = tuple(dict.fromkeys(["nll_base", *self.columns]))
        self.epsilon, self.memory = epsilon, memory
        zero = torch.zeros((), dtype=torch.float64)
        self.register_buffer("strength", zero.clone())
        self.register_buffer("running", zero.clone())
        self.register_buffer("least", zero + math.inf)
        self.register_buffer("has_fallen", torch.tensor(False))

    def coefficient(self, step: Step) -> float:
        """λ at this step."""
        return float(self.strength)

    def statistics(self, tokens: ResponseTokens) -> Float[Tensor, " statistics"]:
        """Σ nll − nll_base of the positive tokens."""
        increase = (tokens.nll.detach() - tokens["nll_base"]).double()
        return increase[tokens.positive_mask].sum()[None]

    def after_step(self, sums: StepSums) -> str | None:
        """Update m and λ; say when λ falls for the first time."""
        step = sums.step
        if step.num_positive == 0:
            return None
        mean = sums.statistics[0] / step.num_positive
        # A running mean of the steps there are, until there are more than it remembers.
        self.running.lerp_(mean.to(self.running), 1 / min(step.number + 1, self.memory))
        torch.minimum(self.least, self.running, out=self.least)
        excess = float(self.running - self.least)
        before = float(self.strength)
        self.strength.add_(self.t_max / step.total * (1 - excess / self.epsilon)).clamp_(0.0, self.t_max)
        if excess > self.epsilon and not self.has_fallen and before > 0:
            self.has_fallen.fill_(True)
            return (
                f"step {step.number}: λ stops growing at {before:.3g}, since the positive tokens' nll is "
                f"{excess:.3f} nats above their best, of {self.epsilon:g} allowed"
            )
        return None

    def metrics(self, step: Step) -> dict[str, float]:
        """λ of the step, and by how much the positive tokens are above their best."""
        excess = 0.0 if step.number == 0 else float(self.running - self.least)
        return {**super().metrics(step), "excess": excess}


def both_sides(tokens: ResponseTokens, positive: Term, negative: Term) -> Float[Tensor, " tokens"]:
    """What stands for each token's nll: the positive term, at the negative tokens the negative one."""
    if positive == negative:
        return positive(tokens)
    return torch.where(tokens.negative_mask, negative(tokens), positive(tokens))


def refuse_coefficient(name: str, t_min: float, t_max: float, negative: Term) -> None:
    """Refuse bounds of λ that are no numbers or out of order, or above 1 with a term that does not fade."""
    largest = math.inf if negative.fades else 1
    if not 0 <= t_min <= t_max <= largest or math.isinf(t_max):  # false for NaN
        raise UserError(
            f"{name} has t_min {t_min} and t_max {t_max}; 0 ≤ t_min ≤ t_max ≤ 1 is expected: λ grows with training, "
            "must not be negative, and above 1 would weigh unlearning more than learning. A negative term that fades, "
            "such as Power, can have a larger t_max. Another λ needs an objective of its own (a subclass of Objective)."
        )
