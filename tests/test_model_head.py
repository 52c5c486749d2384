"""The head against float64 autograd through full logits."""

import pytest
import torch
from torch import nn

from forgetting.model.head import LogitTransform, reference_token_nll, token_nll


def problem(bias: bool = False, tokens: int = 37, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(16, 101, bias=bias, dtype=dtype).requires_grad_(False)
    nn.init.normal_(head.weight, generator=generator)
    hidden = torch.randn(tokens, 16, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(101, (tokens,), generator=generator)
    sent = torch.randn(tokens, generator=generator, dtype=dtype)
    return head, hidden, targets, sent


TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.25), LogitTransform(cap=5.0), LogitTransform(0.5, 3.0)]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", [(1, 1), (8, 7), (37, 101), (16, 50), (100, 1000)])
def test_nll_and_gradient_equal_autograd_for_any_weighting_and_tile(transform, bias, tile):
    head, hidden, targets, sent = problem(bias)
    ours = token_nll(hidden, targets, head, transform, tile)
    (gradient,) = torch.autograd.grad((ours * sent).sum(), hidden)
    theirs = reference_token_nll(hidden, targets, head, transform)
    (expected,) = torch.autograd.grad((theirs * sent).sum(), hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.25)])
@pytest.mark.parametrize("tile", [(1, 1), (8, 7), (37, 101), (16, 50)])
@pytest.mark.parametrize("forbidden", ["first tile", "last tile", "all tiles but one", "some", "a target"])
def test_vocabulary_that_is_forbidden_by_an_infinite_bias_takes_no_part(forbidden, tile, transform, dtype):
    head, hidden, targets, sent = problem(bias=True, dtype=dtype)
    width = min(tile[1], 100)
    out = {
        "first tile": torch.arange(101) < width,
        "last tile": torch.arange(101) >= 101 - width,
        "all tiles but one": torch.arange(101) // width != 0,
        "some": torch.rand(101, generator=torch.Generator().manual_seed(1)) < 0.5,
        "a target": torch.arange(101) == targets[0],
    }[forbidden]
    head.bias[out] = -torch.inf
    if forbidden != "a target":
        targets = (~out).nonzero()[:, 0][targets % int((~out).sum())]
    ours = token_nll(hidden, targets, head, transform, tile)
    (gradient,) = torch.autograd.grad((ours * sent).sum(), hidden)
    theirs = reference_token_nll(hidden, targets, head, transform)
    finite = theirs.isfinite()
    (expected,) = torch.autograd.grad((theirs[finite] * sent[finite]).sum(), hidden)
    assert finite.all() == (forbidden != "a target")
    exactness = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(ours, theirs.to(dtype), **exactness)  # of a forbidden target it is infinite
    torch.testing.assert_close(gradient[finite], expected[finite], **exactness)
    assert gradient.isfinite().all()


def test_the_test_would_see_an_ignored_cap():
    head, hidden, targets, _ = problem()
    capped = token_nll(hidden, targets, head, LogitTransform(cap=5.0))
    assert not torch.allclose(capped, reference_token_nll(hidden, targets, head), rtol=1e-3)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_trained_head_gets_its_own_gradient(transform):
    head, hidden, targets, sent = problem(bias=True)
    head.requires_grad_(True)
    parameters = [hidden, head.weight, head.bias]
    ours = torch.autograd.grad((token_nll(hidden, targets, head, transform, (8, 10)) * sent).sum(), parameters)
    theirs = torch.autograd.grad((reference_token_nll(hidden, targets, head, transform) * sent).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_bfloat16_stays_near_float64():
    head, hidden, targets, sent = problem(dtype=torch.bfloat16)
    ours = token_nll(hidden, targets, head, tile=(8, 10))
    (gradient,) = torch.autograd.grad((ours * sent).sum(), hidden)
    exact_head, exact_hidden = head.double(), hidden.detach().double().requires_grad_()
    theirs = reference_token_nll(exact_hidden, targets, exact_head)
    (expected,) = torch.autograd.grad((theirs * sent.double()).sum(), exact_hidden)
    assert ours.dtype == torch.float32
    # bfloat16 keeps 8 bits: logits of size about 10 are off by up to 0.03.
    torch.testing.assert_close(ours.double(), theirs, rtol=0.03, atol=0.1)
    assert (gradient.double() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_the_small_gradient_of_a_sure_token_is_relatively_exact(dtype, tolerance):
    # softmax − 1 as a difference of rounded numbers would leave little of it.
    head, hidden, targets, _ = problem(dtype=dtype)
    with torch.no_grad():
        rows = head.weight[targets]
        hidden = (rows * (18 / rows.float().square().sum(1, keepdim=True)).to(dtype)).requires_grad_()
    nll = token_nll(hidden, targets, head, tile=(8, 10))
    (gradient,) = torch.autograd.grad(nll.sum(), hidden)
    exact_head, exact_hidden = head.double(), hidden.detach().double().requires_grad_()
    theirs = reference_token_nll(exact_hidden, targets, exact_head)
    (expected,) = torch.autograd.grad(theirs.sum(), exact_hidden)
    assert theirs.min() < 1e-3
    error = (gradient.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < tolerance


def test_without_gradient_and_without_tokens():
    head, hidden, targets, _ = problem()
    with torch.no_grad():
        plain = token_nll(hidden, targets, head, tile=(8, 10))
    torch.testing.assert_close(plain, token_nll(hidden, targets, head, tile=(8, 10)).detach())
    nothing = token_nll(hidden[:0], targets[:0], head)
    assert nothing.shape == (0,)
    (gradient,) = torch.autograd.grad(nothing.sum(), hidden)  # connected, so that a rank without targets keeps step
    assert not gradient.any()


def test_a_second_backward_is_refused_and_not_silently_wrong():
    head, hidden, targets, _ = problem()
    nll = token_nll(hidden, targets, head, tile=(8, 10))
    nll.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        nll.sum().backward()
