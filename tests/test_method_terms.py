"""Every term against its published formula, written with all logits in float64; its limits; its errors."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from forgetting.errors import UserError
from forgetting.method.objectives import Forgetting, MeanNLL
from forgetting.method.response_tokens import ResponseTokens, Step
from forgetting.method.terms import (
    Capped,
    CappedAboveBase,
    EntropyAdaptive,
    Plain,
    Power,
    ProFit,
    SatImp,
    SequenceNPO,
    Taper,
    Term,
    TokenNPO,
    TokenSimNPO,
    Unlikelihood,
    WeightedByQ,
)
from forgetting.model.head import token_nll

VOCAB, HIDDEN, TOKENS = 37, 8, 24
EXAMPLE = torch.arange(TOKENS) // 6  # four responses of six tokens


def sg(value: Tensor) -> Tensor:
    return value.detach()


def sequence_npo(beta: float, log_probs: Tensor, base: Tensor, negative: Tensor) -> Tensor:
    """−(2/β) log σ(−β log(π/π0)) of each response's negative tokens (Zhang et al., 2024), summed over responses."""
    total = torch.zeros((), dtype=log_probs.dtype)
    for number in range(4):
        chosen = (number == EXAMPLE) & negative
        if chosen.any():
            total = total + 2 / beta * torch.log(torch.sigmoid(-beta * (log_probs - base)[chosen].sum()))
    return total


FORMULAS: list[tuple[Term, Callable[..., Tensor]]] = [
    # In terms of p and p0, as published, with the sign of what is ascended: log p = −ℓ.
    (Plain(), lambda p, p0, q, h: -p.log()),
    (Capped(3.0), lambda p, p0, q, h: torch.where(p > math.exp(-3.0), -p.log(), 3.0)),
    (CappedAboveBase(0.5), lambda p, p0, q, h: torch.where(p > p0 * math.exp(-0.5), -p.log(), -p0.log() + 0.5)),
    *[(Power(a), lambda p, p0, q, h, a=a: sg(p**a) * -p.log()) for a in (0.5, 1.0, 2.0, -0.5)],
    *[(TokenNPO(b), lambda p, p0, q, h, b=b: -2 / b * torch.log(1 + (p / p0) ** b)) for b in (0.5, 1.0, 2.0)],
    *[
        (TokenSimNPO(b, 0.7), lambda p, p0, q, h, b=b: -2 / b * torch.log(1 + (p * math.exp(0.7)) ** b))
        for b in (0.5, 1.0, 2.0)
    ],
    (SatImp(1.5, 0.5), lambda p, p0, q, h: sg(p**1.5 * (1 - p) ** 0.5) * -p.log()),
    (Unlikelihood(), lambda p, p0, q, h: torch.log(1 - p)),
    (Taper(), lambda p, p0, q, h: sg(torch.minimum(torch.ones_like(p), p / p0)) * -p.log()),
    (
        WeightedByQ(Unlikelihood(), 0.5),
        lambda p, p0, q, h: torch.minimum(torch.relu(-q), torch.full_like(q, 0.5)) / 0.5 * torch.log(1 - p),
    ),
    (EntropyAdaptive(1.5, 20), lambda p, p0, q, h: sg((h / math.log(20)).clamp(max=1) ** 1.5) * -p.log()),
    (ProFit(0.05), lambda p, p0, q, h: torch.where(p > 0.05, -p.log(), 0.0)),
]
NAMES = [f"{type(term).__name__}-{number}" for number, (term, _) in enumerate(FORMULAS)]


class World:
    """A head, hidden states that predict the tokens, and what a store would hold of them."""

    def __init__(self, dtype: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(1)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False, dtype=torch.float64).requires_grad_(False)
        self.head.weight.copy_(torch.randn(VOCAB, HIDDEN, generator=draw, dtype=torch.float64))
        self.hidden = torch.randn(TOKENS, HIDDEN, generator=draw, dtype=torch.float64)
        self.targets = torch.randint(VOCAB, (TOKENS,), generator=draw)
        self.negative = torch.rand(TOKENS, generator=draw) < 0.5
        noise = torch.randn(2, TOKENS, generator=draw, dtype=torch.float64)
        nll = self.full_nll(self.hidden)
        self.base, self.reference = (nll + 0.5 * noise[0]).abs(), (nll + 0.7 * noise[1]).abs()
        if dtype == torch.float32:
            self.head, self.hidden = self.head.float(), self.hidden.float()
            self.base, self.reference = self.base.float(), self.reference.float()

    def full_nll(self, hidden: Tensor) -> Tensor:
        logits = hidden.double() @ self.head.weight.double().T
        return -torch.log(torch.softmax(logits, -1)).gather(1, self.targets[:, None])[:, 0]

    def tokens(self, nll: Tensor, entropy: Tensor | None = None) -> ResponseTokens:
        columns = {"nll_base": self.base, "nll_reference": self.reference}
        entropy = None if entropy is None else entropy.to(nll.dtype)
        return ResponseTokens(nll, ~self.negative, self.negative, EXAMPLE, columns, entropy)

    def entropy(self) -> Tensor:
        p = torch.softmax(self.hidden.double() @ self.head.weight.double().T, -1)
        return -(p * p.log()).sum(-1)

    def through_the_head(self, objective: Forgetting | MeanNLL) -> tuple[Tensor, Tensor]:
        """Loss and gradient with respect to the hidden states, through the tiled head."""
        hidden = self.hidden.clone().requires_grad_()
        nll = token_nll(hidden, self.targets, self.head, tile=(7, 5))
        loss = objective(self.tokens(nll, self.entropy()), self.step)
        loss.backward()
        assert hidden.grad is not None
        return loss.detach(), hidden.grad

    @property
    def step(self) -> Step:
        negative = int(self.negative.sum())
        return Step(3, 10, TOKENS - negative, negative)

    def by_the_formula(self, formula: Callable[..., Tensor], side: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """mean nll of the other side, and the formula's mean on this one, from all logits in float64."""
        hidden = self.hidden.double().clone().requires_grad_()
        nll, base, reference = self.full_nll(hidden), self.base.double(), self.reference.double()
        values = formula((-nll).exp(), (-base).exp(), base - reference, self.entropy())
        loss = sign * values[side].mean()
        if sign < 0:
            loss = loss + nll[~side].mean()
        loss.backward()
        assert hidden.grad is not None
        return loss.detach(), hidden.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("term", "formula"), FORMULAS, ids=NAMES)
def test_a_negative_term_is_its_formula_in_value_and_gradient(term, formula, dtype, tolerance):
    world = World(dtype)
    coefficient = 0.3
    objective = Forgetting(0.0, coefficient, "constant", negative=term)
    expected = world.by_the_formula(formula, world.negative, -coefficient)
    for ours, theirs in zip(world.through_the_head(objective), expected, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert (ours.double() - theirs).abs().max() <= tolerance * scale
    # The control: the paper's term, which is another one.
    if not isinstance(term, Plain):
        plain = world.through_the_head(Forgetting(0.0, coefficient, "constant"))
        assert (plain[1].double() - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("term", "formula"), FORMULAS, ids=NAMES)
def test_a_positive_term_is_its_formula_in_value_and_gradient(term, formula, dtype, tolerance):
    world = World(dtype)
    expected = world.by_the_formula(formula, ~world.negative, 1.0)
    for ours, theirs in zip(world.through_the_head(MeanNLL(positive=term)), expected, strict=True):
        assert (ours.double() - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_sequence_npo_is_its_formula(beta, dtype, tolerance):
    world = World(dtype)
    ours = world.through_the_head(Forgetting(0.0, 0.3, "constant", negative=SequenceNPO(beta)))
    hidden = world.hidden.double().clone().requires_grad_()
    nll = world.full_nll(hidden)
    npo = sequence_npo(beta, -nll, -world.base.double(), world.negative) / world.negative.sum()
    loss = nll[~world.negative].mean() - 0.3 * npo
    loss.backward()
    for value, expected in zip(ours, (loss.detach(), hidden.grad), strict=True):
        assert (value.double() - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def test_any_pair_combines():
    world = World(torch.float64)
    for negative, _ in FORMULAS:
        for positive, _ in FORMULAS:
            loss, gradient = world.through_the_head(Forgetting(0.0, 0.3, "constant", negative, positive))
            one, other = (
                world.through_the_head(Forgetting(0.0, 0.3, "constant", negative)),
                world.through_the_head(MeanNLL(positive)),
            )
            plain = world.through_the_head(MeanNLL())
            torch.testing.assert_close(loss, one[0] + other[0] - plain[0], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(gradient, one[1] + other[1] - plain[1], rtol=1e-8, atol=1e-10)


def weight(term: Term, nll: float, base: float = 2.0) -> float:
    """∂f/∂nll of one negative token."""
    value = torch.tensor([nll], dtype=torch.float64, requires_grad=True)
    yes = torch.ones(1, dtype=torch.bool)
    columns = {
        "nll_base": torch.tensor([base], dtype=torch.float64),
        "nll_reference": torch.tensor([base + 1], dtype=torch.float64),
    }
    half = torch.tensor([math.log(20) / 2], dtype=torch.float64)
    tokens = ResponseTokens(value, ~yes, yes, torch.zeros(1, dtype=torch.long), columns, half)
    (gradient,) = torch.autograd.grad(term(tokens).sum(), value)
    return float(gradient)


FADING = [
    Capped(5.0), CappedAboveBase(1.0), Power(0.5), Power(2.0), TokenNPO(0.5), TokenNPO(1.0), TokenSimNPO(1.0, 0.5),
    SequenceNPO(1.0), SatImp(1.0, 1.0), Unlikelihood(), Taper(), WeightedByQ(Unlikelihood()), WeightedByQ(Power(1.0)),
    ProFit(0.1),
]  # fmt: skip
LASTING = [Plain(), Power(0.0), Power(-0.5), SatImp(0.0, 1.0), WeightedByQ(Plain()), EntropyAdaptive()]


@pytest.mark.parametrize("term", FADING, ids=lambda term: repr(term))
def test_a_term_that_fades_stops_pushing_what_is_forgotten(term):
    assert term.fades
    assert abs(weight(term, 60.0)) < 1e-10
    assert weight(term, 0.1) > 0 or isinstance(term, SequenceNPO)


@pytest.mark.parametrize("term", LASTING, ids=lambda term: repr(term))
def test_the_control_the_papers_does_not(term):
    assert not term.fades
    assert weight(term, 60.0) >= 0.5


def test_limits_where_the_token_is_certain():
    zero = 1e-12
    assert weight(Power(1.0), zero) == pytest.approx(1)
    assert weight(TokenNPO(1.0), zero, base=2.0) == pytest.approx(2 / (1 + math.exp(-2)))
    assert weight(TokenSimNPO(1.0, 0.5), zero) == pytest.approx(2 / (1 + math.exp(-0.5)))
    assert weight(SatImp(1.0, 1.0), zero) == pytest.approx(0, abs=1e-11)
    assert weight(Taper(), zero) == pytest.approx(1)
    assert weight(Unlikelihood(), 0.0) == pytest.approx(1 / math.expm1(1e-3))
    assert weight(Unlikelihood(), 1e-3 + 1e-9) == pytest.approx(1 / math.expm1(1e-3), rel=1e-5)  # no step there
    assert weight(TokenNPO(1e-4), 3.0, base=1.0) == pytest.approx(1, abs=1e-3)  # gradient ascent


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Capped(0.0), "Capped has cap 0.0; a finite number above 0"),
        (lambda: Capped(math.nan), "cap nan"),
        (lambda: CappedAboveBase(-1.0), "margin -1.0"),
        (lambda: Power(math.inf), "exponent inf"),
        (lambda: TokenNPO(0.0), "beta 0.0"),
        (lambda: TokenSimNPO(1.0, -0.1), "margin -0.1"),
        (lambda: SequenceNPO(-1.0), "beta -1.0"),
        (lambda: SatImp(-1.0, 1.0), "saturation -1.0"),
        (lambda: SatImp(1.0, math.nan), "importance nan"),
        (lambda: WeightedByQ(Plain(), 0.0), "scale 0.0"),
        (lambda: EntropyAdaptive(-1.0), "exponent -1.0"),
        (lambda: EntropyAdaptive(1.0, 1), "num_choices 1"),
        (lambda: ProFit(1.0), "least 1.0"),
        (lambda: Forgetting(0.0, 2.0), "≤ 1 is expected.*fades, such as Power"),
        (lambda: Forgetting(0.0, 2.0, negative=Power(-1.0)), "≤ 1 is expected"),
        (lambda: Forgetting(0.0, math.inf, negative=Power()), "t_max inf"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_term_that_fades_may_have_a_larger_coefficient():
    assert Forgetting(0.0, 2.0, "constant", negative=Power()).coefficient(Step(0, 1, 1, 1)) == 2.0


def test_columns_and_entropy_are_asked_for_by_the_terms_that_read_them():
    assert Forgetting().columns == ()
    assert Forgetting(negative=TokenNPO()).columns == ("nll_base",)
    both = Forgetting(negative=WeightedByQ(TokenNPO()), positive=EntropyAdaptive())
    assert both.columns == ("nll_base", "nll_reference")
    assert both.needs_entropy
    assert not Forgetting().needs_entropy
    assert MeanNLL(EntropyAdaptive()).needs_entropy
