"""Terms: what an objective has in place of a token's nll, on its positive or its negative side.

With a term f on either side, Eq. 8 is mean f(positive) − λ · mean f(negative). What a term does to a token is one
number, its weight w = ∂f/∂nll: the token's gradient is that of its nll times w, so every term costs what the nll costs.
Below, ℓ is the token's nll in nats, p = exp(−ℓ) its probability, ℓ0 and p0 the same under the base model; "sg" stops
the gradient.

On the negative side it matters what w does as the token is forgotten, p → 0. The paper's f = ℓ keeps pushing with
w = 1, without bound; the terms with `fades` stop by themselves. Any term serves on either side.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from forgetting.errors import UserError
from forgetting.method.response_tokens import ResponseTokens


class Term:
    """A function of the nll of each response token. One of your own is a subclass in any module.

    Attributes:
        columns: Stored columns that it reads.
        needs_entropy: Whether it reads `tokens.entropy`.
        fades: Whether its weight goes to 0 as p → 0, so that unlearning ends by itself.
    """

    columns: tuple[str, ...] = ()
    needs_entropy: bool = False
    fades: bool = False

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """Values f of all response tokens of a micro-batch; an objective uses those of its side."""
        raise NotImplementedError

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


@dataclass
class Plain(Term):
    """f = ℓ, the paper's on both sides (Taheri et al., TMLR 2026, Eq. 8): on the negative side gradient ascent.

    p → 0: w = 1, and f has no bound. p → 1: w = 1.
    """

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll."""
        return tokens.nll


@dataclass
class Capped(Term):
    """f = min(ℓ, c): full push until the token costs c nats, then none.

    p → 0: w = 0 from ℓ = c on, f ≤ c. p → 1: w = 1.

    Args:
        cap: c in nats. A uniform guess among a vocabulary of V costs ln V; 0.8 ln V is a start.
    """

    cap: float = 5.0
    fades = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "cap", self.cap, 0 < self.cap < math.inf, "above 0")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll, but not more than the cap."""
        return tokens.nll.clamp(max=self.cap)


@dataclass
class CappedAboveBase(Term):
    """f = min(ℓ, ℓ0 + δ): full push until the token costs δ nats more than under the base model, then none.

    p → 0: w = 0 from ℓ = ℓ0 + δ on, f ≤ ℓ0 + δ. p → 1: w = 1.

    Args:
        margin: δ in nats.
    """

    margin: float = 1.0
    columns = ("nll_base",)
    fades = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "margin", self.margin, 0 <= self.margin < math.inf, "0 or more")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll, but not more than the base model's and a margin."""
        return torch.minimum(tokens.nll, tokens["nll_base"] + self.margin)


@dataclass
class Power(Term):
    """f = sg(p^α) · ℓ: tokens weigh as the model believes them.

    On the negative side weighted gradient ascent, WGA (Wang et al., ICLR 2025, "Rethinking LLM unlearning objectives").
    On the positive side dynamic fine-tuning, DFT, at α = 1 (Wu et al., 2025), and Li et al.'s family (2025,
    arXiv 2510.00526), whose α may be negative.

    p → 0: w = 0 for α > 0. p → 1: w = 1.

    Args:
        exponent: α.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        _refuse_unless(self, "exponent", self.exponent, math.isfinite(self.exponent), "of either sign")
        self.fades = self.exponent > 0

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll times p^α."""
        return (-self.exponent * tokens.nll.detach()).exp() * tokens.nll


@dataclass
class TokenNPO(Term):
    """f = (2/β) log σ(β (ℓ − ℓ0)): negative preference optimization token by token, TNPO.

    w = 2 p^β / (p^β + p0^β): 1 where the token is as likely as under the base model (NPO: Zhang et al., 2024, "Negative
    preference optimization"; per token: Wang et al., ICLR 2025).

    p → 0: w = 0, f ≤ 0. p → 1: w = 2 / (1 + p0^β). β → 0: gradient ascent.

    Args:
        beta: β.
    """

    beta: float = 1.0
    columns = ("nll_base",)
    fades = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "beta", self.beta, 0 < self.beta < math.inf, "above 0")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """NPO's log-sigmoid of each token."""
        return 2 / self.beta * logsigmoid(self.beta * (tokens.nll - tokens["nll_base"]))


@dataclass
class TokenSimNPO(Term):
    """f = (2/β) log σ(β (ℓ − δ)): NPO without a base model, per token.

    One nll δ stands for every token's ℓ0 (Fan et al., 2024, "Simplicity prevails"; their margin γ is β δ).

    p → 0: w = 0, f ≤ 0. p → 1: w = 2 / (1 + exp(−β δ)) < 2.

    Args:
        beta: β.
        margin: δ in nats.
    """

    beta: float = 1.0
    margin: float = 0.0
    fades = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "beta", self.beta, 0 < self.beta < math.inf, "above 0")
        _refuse_unless(self, "margin", self.margin, 0 <= self.margin < math.inf, "0 or more")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """NPO's log-sigmoid against one nll for all tokens."""
        return 2 / self.beta * logsigmoid(self.beta * (tokens.nll - self.margin))


@dataclass
class SequenceNPO(Term):
    """f = (2/β) log σ(β Σ (ℓ − ℓ0)) of a response's negative tokens, divided among them: NPO (Zhang et al., 2024).

    One weight for all of a response's negative tokens, w = 2σ(−β Σ (ℓ − ℓ0)). With every token negative or none, as
    sequence-level selection has it, the sum is over the whole response, as published.

    Σ(ℓ − ℓ0) → ∞: w = 0, f ≤ 0. Σ(ℓ − ℓ0) → −∞: w = 2.

    Args:
        beta: β.
    """

    beta: float = 0.1
    columns = ("nll_base",)
    fades = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "beta", self.beta, 0 < self.beta < math.inf, "above 0")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """NPO's log-sigmoid of each response, an equal share for each of its negative tokens."""
        mask = tokens.negative_mask.to(tokens.nll.dtype)
        num_examples = int(tokens.example[-1]) + 1 if len(tokens.example) else 0
        sums = tokens.nll.new_zeros(2, num_examples)
        increase = mask * (tokens.nll - tokens["nll_base"])
        sums = sums.index_add(1, tokens.example, torch.stack([increase, mask]))
        return (2 / self.beta * logsigmoid(self.beta * sums[0]) / sums[1].clamp(min=1))[tokens.example]


@dataclass
class SatImp(Term):
    """f = sg(p^β1 · (1 − p)^β2) · ℓ: neither what is forgotten nor what is certain is pushed (Yang et al., 2025).

    p → 0: w = 0 for β1 > 0. p → 1: w = 0 for β2 > 0.

    Args:
        saturation: β1.
        importance: β2.
    """

    saturation: float = 1.0
    importance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("saturation", "importance"):
            _refuse_unless(self, name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "0 or more")
        self.fades = self.saturation > 0

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll times p^β1 (1 − p)^β2."""
        nll = tokens.nll.detach()
        return (-self.saturation * nll).exp() * (-torch.expm1(-nll)).pow(self.importance) * tokens.nll


@dataclass
class Unlikelihood(Term):
    """f = log(1 − p): the likelihood of every other token (Welleck et al., 2020; CE-U: Yang, 2025).

    w = p / (1 − p), which with the nll's own gradient is at most 1 for the token's logit. Below `SURE` nats, where
    1 − p is no number to divide by, f goes on as a straight line.

    p → 0: w = 0, f ≤ 0. p → 1: w = 1 / SURE, about 1,000.
    """

    SURE = 1e-3
    fades = True

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """log(1 − p)."""
        # Clamped, so that the branch that is not taken has a finite gradient, too.
        curve = (-torch.expm1(-tokens.nll.clamp(min=self.SURE))).log()
        line = math.log(-math.expm1(-self.SURE)) + (tokens.nll - self.SURE) / math.expm1(self.SURE)
        return torch.where(tokens.nll > self.SURE, curve, line)


@dataclass
class Taper(Term):
    """f = sg(min(1, p / p0)) · ℓ: full push down to what the base model believed, then fading.

    The token form of tapered off-policy REINFORCE (Le Roux et al., 2025).

    p → 0: w = 0. p → 1: w = 1.
    """

    columns = ("nll_base",)
    fades = True

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll, less where the base model believed the token more than the model does now."""
        return (tokens["nll_base"] - tokens.nll.detach()).clamp(max=0).exp() * tokens.nll


@dataclass
class WeightedByQ(Term):
    """Another term, times min(−Q, s) / s: negative tokens weigh as much as the reference had them worse than the base.

    Q = nll_base − nll_reference (Eq. 4-5). Where Q ≥ 0 the weight is 0: such a token is negative for its rank alone.

    Args:
        term: The other term; its limits are those of the product.
        scale: s in nats: from there on the weight is whole.
    """

    term: Term
    scale: float = 0.5
    columns = ("nll_base", "nll_reference")

    def __post_init__(self) -> None:
        _refuse_unless(self, "scale", self.scale, 0 < self.scale < math.inf, "above 0")
        self.columns = tuple(dict.fromkeys([*type(self).columns, *self.term.columns]))
        self.needs_entropy, self.fades = self.term.needs_entropy, self.term.fades

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The term's values, weighted."""
        increase = tokens["nll_reference"] - tokens["nll_base"]
        return increase.clamp(0, self.scale) / self.scale * self.term(tokens)


@dataclass
class EntropyAdaptive(Term):
    """f = sg(min(1, H / ln k)^α) · ℓ: tokens of which the model is sure weigh less, right or wrong (EAFT, 2026).

    H is the entropy of the model's distribution at the token, over the whole vocabulary, made while its nll is
    computed; published code takes that of the k likeliest tokens, which is at most ln k.

    p → 0 says nothing of H. p → 1: w = 0 for α > 0.

    Args:
        exponent: α.
        num_choices: k: H = ln k is that of as many equally likely tokens, and weighs 1.
    """

    exponent: float = 1.0
    num_choices: int = 20
    needs_entropy = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "exponent", self.exponent, 0 <= self.exponent < math.inf, "0 or more")
        _refuse_unless(self, "num_choices", self.num_choices, self.num_choices >= 2, "2 or more")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll, weighted by the entropy."""
        assert tokens.entropy is not None, "whoever runs the model must ask it for the entropy"
        share = (tokens.entropy / math.log(self.num_choices)).clamp(0, 1)
        return share.pow(self.exponent) * tokens.nll


@dataclass
class ProFit(Term):
    """f = 1[p > τ] · ℓ: only tokens that the model finds likely enough are trained on (Liu et al., 2026).

    p → 0: w = 0. p → 1: w = 1.

    Args:
        least: τ.
    """

    least: float = 0.1
    fades = True

    def __post_init__(self) -> None:
        _refuse_unless(self, "least", self.least, 0 < self.least < 1, "between 0 and 1")

    def __call__(self, tokens: ResponseTokens) -> Float[Tensor, " tokens"]:
        """The nll of the likely tokens, 0 for the others."""
        return (tokens.nll.detach() < -math.log(self.least)) * tokens.nll


def _refuse_unless(term: Term, name: str, value: int | float, fits: bool, expected: str) -> None:
    """Refuse a setting that is out of its range, or no finite number."""
    if not fits:
        raise UserError(f"{type(term).__name__} has {name} {value}; a finite number {expected} was expected.")
