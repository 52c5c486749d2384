"""The paper's equation in closed form."""

import pytest
import torch

from forgetting.errors import UserError
from forgetting.method.objectives import Forgetting, MeanNLL, dual_loss, scheduled_coefficient
from forgetting.method.response_tokens import ResponseTokens, Step

NLL = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
POSITIVE = torch.tensor([True, True, False, False])
NEGATIVE = torch.tensor([False, False, True, False])  # the last token is of neither


def test_equation_8_by_hand():
    loss = dual_loss(NLL, POSITIVE, NEGATIVE, 0.5, 2, 1)
    assert loss.item() == pytest.approx((1 + 2) / 2 - 0.5 * 4 / 1, rel=1e-15)


def test_gradient_is_a_weight_for_each_token_and_none_for_the_ignored():
    nll = NLL.clone().requires_grad_()
    dual_loss(nll, POSITIVE, NEGATIVE, 0.5, 2, 1).backward()
    assert nll.grad is not None
    assert nll.grad.tolist() == [0.5, 0.5, -0.5, 0.0]


def test_the_parts_of_a_step_add_up_to_it():
    whole = dual_loss(NLL, POSITIVE, NEGATIVE, 0.3, 2, 1)
    parts = [dual_loss(NLL[i : i + 1], POSITIVE[i : i + 1], NEGATIVE[i : i + 1], 0.3, 2, 1) for i in range(4)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)
    # The control: means inside each part, as the published code takes them, are another number.
    inside = [dual_loss(NLL[i : i + 2], POSITIVE[i : i + 2], NEGATIVE[i : i + 2], 0.3, 1, 1) for i in (0, 2)]
    assert not torch.isclose(sum(inside) / 2, whole)


def test_a_count_of_zero_contributes_zero():
    nothing = torch.zeros(4, dtype=torch.bool)
    assert dual_loss(NLL, nothing, nothing, 0.5, 0, 0).item() == 0
    assert dual_loss(NLL, POSITIVE, nothing, 0.5, 2, 0).item() == 1.5
    assert dual_loss(NLL[:0], nothing[:0], nothing[:0], 0.5, 2, 0).item() == 0


def test_the_objectives_are_equation_8_at_their_own_coefficient():
    tokens, step = ResponseTokens(NLL, POSITIVE, NEGATIVE, torch.zeros(4, dtype=torch.long)), Step(5, 10, 2, 1)
    assert MeanNLL()(tokens, step).item() == (1 + 2) / 2
    assert Forgetting(0.0, 0.4)(tokens, step).item() == pytest.approx((1 + 2) / 2 - 0.2 * 4)
    assert Forgetting(0.0, 0.4)(tokens, Step(0, 10, 2, 1)) == MeanNLL()(tokens, step)
    assert Forgetting(0.0, 0.4).metrics(step) == {"coefficient": pytest.approx(0.2)}
    every = ResponseTokens(NLL, POSITIVE | True, NEGATIVE & False, tokens.example)
    assert MeanNLL()(every, Step(5, 10, 4, 0)).item() == NLL.mean().item()


def test_a_column_that_was_not_asked_for_is_refused():
    column = {"nll_base": NLL}
    tokens = ResponseTokens(NLL, POSITIVE, NEGATIVE, torch.zeros(4, dtype=torch.long), column)
    assert tokens["nll_base"] is NLL
    with pytest.raises(UserError, match=r"reads the column 'nll_reference' without asking .*there: nll_base"):
        tokens["nll_reference"]


def test_the_schedules():
    steps = range(11)
    paper = [scheduled_coefficient(s, 10, 0.05, 0.25) for s in steps]
    assert paper[0] == 0.0  # it never starts at t_min
    assert paper == pytest.approx([0.02 * s for s in steps])
    ramp = [scheduled_coefficient(s, 10, 0.05, 0.25, "ramp") for s in steps]
    assert ramp == pytest.approx([0.05 + v for v in paper])
    assert {scheduled_coefficient(s, 10, 0.05, 0.25, "constant") for s in steps} == {0.25}


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(("t_min", "t_max"), [
    (0.3, 0.2), (-0.1, 0.2), (-2.0, -1.0), (0.0, 50.0), (0.0, 1.01), (NAN, 0.2), (0.0, NAN), (0.0, INFINITY),
    (-INFINITY, 0.2), (INFINITY, INFINITY),
])  # fmt: skip
def test_a_coefficient_that_falls_is_negative_not_finite_or_above_one_is_refused(t_min, t_max):
    with pytest.raises(UserError, match=r"0 ≤ t_min ≤ t_max ≤ 1.*Objective"):
        Forgetting(t_min, t_max)


@pytest.mark.parametrize(("t_min", "t_max"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_ends_of_the_range_are_in_it(t_min, t_max):
    assert 0 <= Forgetting(t_min, t_max, "constant").coefficient(Step(3, 10, 1, 1)) <= 1
