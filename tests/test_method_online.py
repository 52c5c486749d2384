"""Selection in one run, and λ by a constraint: closed forms, the same for any division, the same bits after a kill."""

import csv
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_process
from small_experiment import METHOD, adapter_bytes, signal_at
from torch import Tensor

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.method.objectives import ConstrainedForgetting, scheduled_coefficient
from forgetting.method.online import BINS, LIMIT, OnlineForgetting, OnlineIgnoring, top_of_each
from forgetting.method.response_tokens import ResponseTokens, Step, StepSums
from forgetting.method.terms import Plain, Power, TokenNPO


def tokens_of(nll: Tensor, base: Tensor, positive: Tensor | None = None) -> ResponseTokens:
    every = torch.ones(len(nll), dtype=torch.bool)
    positive = every if positive is None else positive
    return ResponseTokens(nll, positive, every & ~positive, torch.arange(len(nll)) // 5, {"nll_base": base})


def sums(step: Step, statistics: Tensor) -> StepSums:
    return StepSums(step, 0.0, 0.0, 0.0, statistics.double())


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(count, generator=generator, dtype=torch.float64) * 6
    return (base + 0.8 * torch.randn(count, generator=generator, dtype=torch.float64)).abs(), base


@pytest.mark.parametrize(("fraction", "place"), [(0.5, 10 + 2 / 3), (0.75, 10 + 1 / 3), (0.1, 11.6), (0.25, 11.0)])
def test_the_threshold_is_linear_within_a_bin(fraction, place):
    objective = OnlineIgnoring(fraction)
    objective.counts[10:12] = torch.tensor([3.0, 1.0])
    assert float(objective.threshold) == pytest.approx(-LIMIT + place * 2 * LIMIT / BINS)


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_the_threshold_is_the_quantile_of_recent_scores_to_a_bin(fraction):
    objective, seen = OnlineIgnoring(fraction, memory=1e9), []
    for number in range(20):
        tokens = tokens_of(*draw(500, number))
        seen.append(tokens["nll_base"] - tokens.nll)
        objective.after_step(sums(Step(number, 100, 500, 0), objective.statistics(tokens)))
    exact = torch.quantile(torch.cat(seen), 1 - fraction)
    assert abs(objective.threshold - exact) < 2 * LIMIT / BINS
    fresh = tokens_of(*draw(20_000, 99))
    share = objective.select(fresh, Step(50, 100, 20_000, 0)).positive_mask.double().mean()
    assert share == pytest.approx(fraction, abs=0.02)


def test_old_scores_fade():
    objective = OnlineIgnoring(0.5, memory=4.0)
    for number in range(40):
        level = 1.0 if number < 28 else -1.0
        tokens = tokens_of(torch.full((100,), 3.0), torch.full((100,), 3.0 + level))
        objective.after_step(sums(Step(number, 40, 100, 0), objective.statistics(tokens)))
    assert objective.threshold == pytest.approx(-1.0, abs=2 * LIMIT / BINS)


def test_scores_beyond_the_bins_are_counted():
    objective = OnlineIgnoring()
    tokens = tokens_of(torch.tensor([0.0, 100.0]), torch.tensor([100.0, 0.0]))
    counts = objective.statistics(tokens)
    assert counts[0] == counts[-1] == 1
    assert counts.sum() == 2


def test_the_warm_up_trains_on_every_token_and_the_first_step_always():
    nll, base = draw(10)
    for objective in (OnlineIgnoring(warmup_fraction=0.2), OnlineForgetting(warmup_fraction=0.2)):
        step = Step(1, 10, 10, 0)
        tokens = objective.select(tokens_of(nll, base), step)
        assert tokens.positive_mask.all()
        assert objective(tokens, step).item() == pytest.approx(nll.mean().item())
    assert OnlineIgnoring(warmup_fraction=0.0).is_warmup(Step(0, 10, 10, 0))
    assert not OnlineIgnoring(warmup_fraction=0.0).is_warmup(Step(1, 10, 10, 0))


def test_the_loss_is_equation_8_over_the_tokens_expected():
    objective = OnlineForgetting(0.7, warmup_fraction=0.0, t_max=0.8, start=0.5, negative=Plain())
    nll, base = draw(50)
    objective.after_step(sums(Step(0, 20, 50, 0), objective.statistics(tokens_of(nll, base))))
    nll, base = draw(50, 1)
    for number, coefficient in ((5, 0.0), (10, 0.0), (15, 0.4), (19, 0.72)):
        step = Step(number, 20, 50, 0)
        assert objective.coefficient(step) == pytest.approx(coefficient)
        tokens = objective.select(tokens_of(nll, base), step)
        high = base - nll > objective.threshold
        expected = nll[high].sum() / (0.7 * 50) - coefficient * nll[~high].sum() / (0.3 * 50)
        assert objective(tokens, step).item() == pytest.approx(expected.item())
        parts = []
        for piece in (slice(0, 10), slice(10, 45), slice(45, 50)):
            parts.append(objective(objective.select(tokens_of(nll[piece], base[piece]), step), step))
        assert sum(parts).item() == pytest.approx(expected.item())
        # The control: means over the tokens that a part selects depend on the parts.
        means = [nll[piece][high[piece]].mean() for piece in (slice(0, 10), slice(10, 45), slice(45, 50))]
        assert sum(means).item() != pytest.approx(nll[high].mean().item())


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
def test_the_top_of_each_example_is_what_sorting_gives(fraction):
    generator = np.random.default_rng(3)
    counts = generator.integers(1, 9, 30)
    example = np.repeat(np.arange(30), counts)
    score = generator.integers(0, 4, counts.sum()).astype(float)  # with ties
    expected = np.zeros(len(score), bool)
    for number in range(30):
        places = np.flatnonzero(example == number)
        best = sorted(places, key=lambda place: (-score[place], place))
        expected[best[: round(fraction * len(places))]] = True
    ours = top_of_each(torch.tensor(score), torch.tensor(example), fraction)
    assert ours.tolist() == expected.tolist()
    assert top_of_each(torch.zeros(0), torch.zeros(0, dtype=torch.long), fraction).tolist() == []


def test_ranked_within_each_response_no_threshold_is_needed():
    objective = OnlineIgnoring(0.6, scope="example", warmup_fraction=0.0)
    nll, base = draw(50)
    chosen = objective.select(tokens_of(nll, base), Step(3, 10, 50, 0))
    assert chosen.positive_mask.view(10, 5).sum(1).tolist() == [3] * 10
    assert objective.metrics(Step(3, 10, 50, 0)) == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnlineIgnoring(1.0), r"positive_fraction \(ρ\) 1.0; expected between 0 and 1"),
        (lambda: OnlineIgnoring(math.nan), "nan"),
        (lambda: OnlineIgnoring(warmup_fraction=1.0), "warmup_fraction 1.0"),
        (lambda: OnlineIgnoring(memory=0.5), "memory 0.5"),
        (lambda: OnlineForgetting(start=1.0), "start 1.0"),
        (lambda: OnlineForgetting(start=0.05), r"no less than warmup_fraction \(0.1\)"),
        (lambda: OnlineForgetting(t_max=1.5, negative=Plain()), "t_max 1.5.*fades"),
        (lambda: ConstrainedForgetting(epsilon=0.0), "epsilon 0.0"),
        (lambda: ConstrainedForgetting(memory=math.inf), "memory inf"),
        (lambda: ConstrainedForgetting(t_max=1.5, negative=Plain()), "t_max 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- λ by a constraint ---


def run_constraint(objective: ConstrainedForgetting, means: list[float]) -> tuple[list[float], list[str]]:
    """λ before each step, and what was said, where the positive tokens are so many nats above the base model."""
    coefficients, news = [], []
    base = torch.ones(5, dtype=torch.float64)
    for number, mean in enumerate(means):
        step = Step(number, len(means), 3, 2)
        coefficients.append(objective.coefficient(step))
        positive = torch.tensor([True, True, True, False, False])
        tokens = tokens_of(base + mean * positive + 7 * ~positive, base, positive)
        news.append(objective.after_step(sums(step, objective.statistics(tokens))))
    return coefficients, [line for line in news if line is not None]


def test_where_unlearning_costs_nothing_the_schedule_is_the_papers():
    objective = ConstrainedForgetting(epsilon=0.05, t_max=0.8)
    coefficients, news = run_constraint(objective, [-0.01 * i for i in range(20)])
    assert coefficients == pytest.approx([scheduled_coefficient(i, 20, 0.0, 0.8) for i in range(20)])
    assert news == []


def test_at_the_constraint_lambda_stands_and_beyond_it_falls_to_zero():
    objective = ConstrainedForgetting(epsilon=0.125, t_max=1.0, memory=1.0)
    coefficients, news = run_constraint(objective, [0.0] * 5 + [0.125] * 5 + [0.375] * 5 + [0.0] * 5)
    step = 1 / 20
    assert coefficients[5] == pytest.approx(5 * step)
    assert coefficients[6:11] == pytest.approx([5 * step] * 5)  # ε above the best: neither way
    assert coefficients[11] == pytest.approx(3 * step)  # 3 ε above it: down by twice the slope
    assert coefficients[13] == 0.0
    assert coefficients[16] == pytest.approx(step)  # no cost any more: up again
    assert news == [
        "step 10: λ stops growing at 0.25, since the positive tokens' nll is 0.375 nats above their best, of 0.125 "
        "allowed"
    ]


def test_a_batch_that_is_hard_for_the_base_model_too_is_no_cost():
    objective = ConstrainedForgetting(memory=1.0)
    for number, level in enumerate([1.0, 5.0, 2.0, 9.0]):
        base = torch.full((5,), level, dtype=torch.float64)
        tokens = tokens_of(base - 0.5, base)
        objective.after_step(sums(Step(number, 4, 5, 0), objective.statistics(tokens)))
    assert objective.coefficient(Step(4, 4, 5, 0)) == pytest.approx(1.0)
    assert objective.after_step(sums(Step(4, 5, 0, 3), torch.zeros(1))) is None  # no positive token: nothing is known


def test_the_columns_are_those_of_the_constraint_and_of_the_terms():
    assert ConstrainedForgetting().columns == ("nll_base",)
    assert ConstrainedForgetting(negative=TokenNPO()).columns == ("nll_base",)
    assert ConstrainedForgetting(negative=Power(2.0)).negative == Power(2.0)


# --- through the command line ---

ONLINE = ["--data.positive_fraction", "all", "--trainer.max_epochs", "1", "--model.objective"]
ONE_RUN = [*ONLINE, "{class_path: OnlineForgetting, init_args: {warmup_fraction: 0.2, start: 0.4, memory: 2.0}}"]
CONSTRAINED = ["--model.objective", "{class_path: ConstrainedForgetting, init_args: {epsilon: 1.0e-6, memory: 1.0}}"]
FIT = ["fit", "--config", METHOD]


def run_folder() -> Path:
    (folder,) = [file.parent for file in Path("runs/tiny").glob("forgetting@*/seed-0/fit.yaml")]
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("options", [ONE_RUN, CONSTRAINED], ids=["one run", "constraint"])
def test_killed_twice_it_ends_with_the_same_bits(scored_work, options, capsys):
    if options is ONE_RUN:
        shutil.rmtree("runs")  # no reference, no scores
    main([*FIT, *options])
    whole = run_folder().rename("whole")
    shutil.rmtree("runs/tiny/" + next(p.name for p in Path("runs/tiny").glob("forgetting@*")))
    for step in (3, 5):
        assert in_process([*FIT, *options, *signal_at(step=step)]) == -9
    main([*FIT, *options])
    assert adapter_bytes(run_folder()) == adapter_bytes(whole)
    ours, theirs = rows(run_folder()), rows(whole)
    for name in ("train/loss", "train/nll_positive", "train/nll_negative", "train/coefficient"):
        assert [row[name] for row in ours] == [row[name] for row in theirs], name
    card, said = (run_folder() / "adapter/README.md").read_text(), capsys.readouterr().out
    assert "(negative=Power(exponent=1.0)) on backbone: " in said
    assert ("Which response tokens are positive is decided while it trains" in card) == (options is ONE_RUN)
    coefficients = [float(row["train/coefficient"]) for row in ours]
    assert coefficients[0] == 0
    assert max(coefficients) > 0
    if options is ONE_RUN:
        assert len(ours) == 7
        assert ours[1]["train/nll_negative"] == ""  # the warm-up
        assert ours[3]["train/nll_negative"] != ""
        assert ours[3]["train/threshold"] != ""
    else:
        assert re.search(r"step \d+: λ stops growing at [\d.]+", said)


def test_the_control_without_its_state_a_run_ends_otherwise(scored_work, monkeypatch):
    main([*FIT, *ONE_RUN])
    whole = run_folder().rename("whole")
    shutil.rmtree("runs/tiny/" + next(p.name for p in Path("runs/tiny").glob("forgetting@*")))
    monkeypatch.setattr(OnlineIgnoring, "after_step", lambda self, sums: str(self.counts.fill_(1.0))[:0] or None)
    main([*FIT, *ONE_RUN])
    assert adapter_bytes(run_folder()) != adapter_bytes(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.objective", "OnlineIgnoring"],
            r"OnlineIgnoring selects tokens by itself.*set data\.positive_fraction ",
        ),
        (
            ["--model.objective", "OnlineIgnoring", "--data.positive_fraction", "all"],
            r"first epoch alone: set trainer\.max_epochs to 1 instead of 2",
        ),
    ],
)
def test_one_run_needs_all_tokens_and_one_epoch(scored_work, options, message):
    with pytest.raises(UserError, match=message):
        main([*FIT, *options])
