"""The head against float64 autograd through full logits."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from forgetting.model.head import LogitTransform, reference_token_nll, token_nll, token_nll_and_entropy


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


def grid(dtype: torch.dtype, bias: bool = True, std: float = 1.0):
    """A problem in sixteenths, whose logits are exact in float32 as in float64."""
    head, hidden, targets, sent = problem(bias, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for values in (hidden, *head.parameters()):
            values.copy_((torch.randn(values.shape, generator=generator) * 16).round() / 16)
        head.weight.mul_(std)
    return head.to(dtype), hidden.detach().to(dtype).requires_grad_(), targets, sent.to(dtype)


def entropy_by_definition(hidden, head, transform):
    """−Σ p · log p of all logits in float64; 0 where p is 0."""
    logits = hidden.detach().double() @ head.weight.detach().double().T
    if head.bias is not None:
        logits = logits + head.bias.detach().double()
    logits = logits * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return torch.special.entr(logits.softmax(dim=1)).sum(dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", [(8, 7), (37, 101), (16, 50), (100, 1000)])
def test_the_entropy_is_that_of_all_logits_and_changes_no_bit_of_nll_and_gradient(tile, bias, transform, dtype):
    head, hidden, targets, sent = grid(dtype, bias)
    nll, entropy = token_nll_and_entropy(hidden, targets, head, transform, tile)
    (gradient,) = torch.autograd.grad((nll * sent).sum(), hidden)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
    expected = entropy_by_definition(hidden, head, transform)
    torch.testing.assert_close(entropy.double(), expected, **tolerance)
    assert entropy.dtype == dtype
    assert not entropy.requires_grad
    assert expected.max() - expected.min() > 0.1
    alone = token_nll(hidden, targets, head, transform, tile)
    assert torch.equal(nll, alone)
    assert torch.equal(gradient, torch.autograd.grad((alone * sent).sum(), hidden)[0])
    with torch.no_grad():
        assert torch.equal(token_nll_and_entropy(hidden, targets, head, transform, tile)[1], entropy)


def test_the_entropy_of_bfloat16_logits_is_exact_but_for_their_rounding():
    head, hidden, targets, _ = grid(torch.bfloat16)
    with torch.no_grad():
        rounded = head(hidden).double()
    _, entropy = token_nll_and_entropy(hidden, targets, head, tile=(8, 10))
    assert entropy.dtype == torch.float32
    expected = torch.special.entr(rounded.softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("forbidden", [range(50), range(51, 101), range(1, 101), range(0, 101, 2)])
def test_a_forbidden_entry_contributes_nothing_to_the_entropy(forbidden, dtype, trained):
    head, hidden, targets, _ = grid(dtype)
    head.bias[list(forbidden)] = -torch.inf  # targets are among them
    head.requires_grad_(trained)
    _, entropy = token_nll_and_entropy(hidden, targets, head, tile=(8, 10))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(
        entropy.double(), entropy_by_definition(hidden, head, LogitTransform()), rtol=tolerance, atol=tolerance
    )
    assert (entropy == 0).all() == (len(forbidden) == 100)  # one entry is left: certain


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("std", [10.0, 60.0])
def test_the_entropy_of_sure_tokens_is_near_0_and_not_negative(std, dtype, trained):
    head, hidden, _, _ = grid(dtype, std=std)
    with torch.no_grad():
        logits = head(hidden).double()
    expected = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    head.requires_grad_(trained)
    for targets in (logits.argmax(dim=1), logits.argmin(dim=1)):
        _, entropy = token_nll_and_entropy(hidden, targets, head, tile=(8, 10))
        assert (entropy >= 0).all()
        torch.testing.assert_close(entropy.double(), expected, rtol=1e-6, atol=1e-6)
    assert expected.min() < 1e-12
    assert logits.abs().max() > 100  # log Σ exp − Σ p · z without the largest taken out loses 1e-5 here


def test_the_entropy_of_a_sure_target_is_relatively_exact():
    head, hidden, _, _ = grid(torch.float32, std=10)
    expected = entropy_by_definition(hidden, head, LogitTransform())
    targets = head(hidden).argmax(dim=1)
    _, entropy = token_nll_and_entropy(hidden, targets, head, tile=(8, 10))
    small = (expected < 1e-3) & (expected > 1e-9)  # below, 1 - p in float64 is not exact enough
    assert small.sum() >= 3
    torch.testing.assert_close(entropy.double()[small], expected[small], rtol=3e-6, atol=0)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_trained_head_has_the_same_entropy_and_its_own_gradient(transform):
    head, hidden, targets, sent = problem(bias=True, tokens=300)  # two chunks
    expected = entropy_by_definition(hidden, head, transform)
    head.requires_grad_(True)
    parameters = [hidden, head.weight, head.bias]
    nll, entropy = token_nll_and_entropy(hidden, targets, head, transform, (8, 10))
    torch.testing.assert_close(entropy, expected, rtol=1e-10, atol=1e-10)
    assert not entropy.requires_grad
    alone = token_nll(hidden, targets, head, transform, (8, 10))
    assert torch.equal(nll, alone)
    gradients = torch.autograd.grad((nll * sent).sum(), parameters)
    for a, b in zip(gradients, torch.autograd.grad((alone * sent).sum(), parameters), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("trained", [False, True])
def test_no_tokens_have_no_entropy(trained):
    head, hidden, targets, _ = problem()
    head.requires_grad_(trained)
    nll, entropy = token_nll_and_entropy(hidden[:0], targets[:0], head)
    assert nll.shape == entropy.shape == (0,)
    (gradient,) = torch.autograd.grad(nll.sum(), hidden)
    assert not gradient.any()


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of a tensor that any operation returns, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += "mm" in str(function)
        self.elements = max([self.elements, *(r.numel() for r in tree_leaves(result) if isinstance(r, torch.Tensor))])
        return result


def test_the_entropy_takes_no_more_than_a_tile_and_no_second_pass_over_the_head():
    tokens, vocabulary, tile = 64, 3000, (16, 200)
    head = nn.Linear(16, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(tokens, 16, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(0))

    def measure(function):
        with LargestTensor() as seen:
            function(hidden, targets, head, LogitTransform(), tile)
        return seen

    alone, both = measure(token_nll), measure(token_nll_and_entropy)
    assert alone.products == both.products > 0
    assert alone.elements == both.elements == 16 * 200
    with LargestTensor() as control:
        reference_token_nll(hidden, targets, head)
    assert control.elements == tokens * vocabulary
