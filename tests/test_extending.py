"""docs/extending.md as a reader would use it: each block in a file of its own, next to the experiments."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_process
from small_experiment import METHOD, STEPS, adapter_bytes, signal_at

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.method.masks import ScoredSplit
from forgetting.method.objectives import Forgetting
from forgetting.method.response_tokens import ResponseTokens, Step
from forgetting.method.steps import StepDataset
from forgetting.method.store import ScoreStore

PAGE = Path(__file__).parent.parent / "docs/extending.md"
BLOCKS = dict(
    re.findall(r"`(\w+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
)
FIT = ["fit", "--config", METHOD]


@pytest.fixture
def work(scored_work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in BLOCKS.items():
        (scored_work / name).write_text(text)
    monkeypatch.syspath_prepend(scored_work)
    yield scored_work
    for name in BLOCKS:
        sys.modules.pop(name.removesuffix(".py"), None)


def a_class(name: str) -> type:
    module, _, cls = name.partition(".")
    scope: dict = {"__name__": module}
    exec(compile(BLOCKS[f"{module}.py"], module, "exec"), scope)
    return scope[cls]


def test_each_example_is_at_most_thirty_lines():
    assert {name: text.count("\n") for name, text in BLOCKS.items() if text.count("\n") > 40} == {}
    assert all(
        BLOCKS[name].count("\n") <= 30 for name in ("bounded.py", "learned.py", "scores_of_mine.py", "mine.yaml")
    )


def test_the_bounded_term_in_closed_form_and_bounded():
    objective = Forgetting(t_min=0.0, t_max=0.4, negative=a_class("bounded.SoftCap")(distance=0.5))
    nll = torch.tensor([1.0, 2.0, 0.5, 40.0], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([1.5, 1.0, 0.7, 1.0], dtype=torch.float64)
    positive = torch.tensor([True, False, False, False])
    tokens = ResponseTokens(nll, positive, ~positive, torch.zeros(4, dtype=torch.long), {"nll_base": base})
    loss = objective(tokens, Step(5, 10, 1, 3))  # λ = 0.2
    bounded = base + 0.5 * torch.tanh(2 * (nll - base))
    torch.testing.assert_close(loss, nll[0] - 0.2 * bounded[1:].mean(), rtol=1e-12, atol=0)
    loss.backward()
    weight = 1 / torch.cosh(2 * (nll.detach() - base)) ** 2
    torch.testing.assert_close(nll.grad[1:], -0.2 / 3 * weight[1:], rtol=1e-10, atol=1e-20)
    assert nll.grad[3].abs() < 1e-9  # an unlikely token is left alone, unlike by Eq. 8


def test_the_bounded_term_trains_with_stored_columns(work):
    main([*FIT, "--model.objective.negative=bounded.SoftCap", "--model.objective.negative.distance=0.5"])
    assert [path.parent.name for path in Path("runs/tiny").glob("forgetting@*/seed-0")] == [
        "forgetting@negative=bounded.SoftCap+distance=0.5"
    ]


def test_columns_are_those_of_the_tokens_whatever_the_division_and_empty_batches_have_them_too(work):
    split = ScoreStore.open(Path("runs/tiny/reference/seed-0/scores")).split("train")
    rows = [np.arange(3 + i % 5, dtype=np.int32) for i in range(len(split))]
    counts = split.num_targets()

    class Examples:
        lengths = np.array([int(n) + 2 for n in counts], dtype=np.int32)

        def __len__(self):
            return len(rows)

        def input_ids(self, i):
            return np.arange(self.lengths[i], dtype=np.int32)

        def response_mask(self, i):
            return np.arange(self.lengths[i]) >= 2

    def masks(i):
        return np.ones(counts[i], bool), np.zeros(counts[i], bool)

    num_empty = 0
    for budget, ranks in ((10**6, 1), (40, 1), (40, 3), (10**6, 5)):
        seen = []
        for rank in range(ranks):
            step = StepDataset(Examples(), masks, budget, rank, ranks, split, ("nll_base",))[0, [5, 1, 2]]
            for batch in step.micro_batches:
                tokens = batch.tokens(torch.zeros(len(batch.positive_mask)))
                assert tokens["nll_base"].shape == tokens.nll.shape == tokens.example.shape
                seen.append(tokens["nll_base"])
                num_empty += len(tokens.nll) == 0
        expected = np.concatenate([split.example(i)["nll_base"] for i in (5, 1, 2)])
        np.testing.assert_array_equal(np.sort(torch.cat(seen).numpy()), np.sort(expected))
    assert num_empty  # a rank without sequences


WATCHING = """
from forgetting.method.objectives import Forgetting


class Watching(Forgetting):
    seen = []

    def after_step(self, sums):
        means = sums.nll_positive / sums.step.num_positive, sums.nll_negative / sums.step.num_negative
        self.seen.append((sums.loss, *means))
"""


def test_an_objective_is_told_the_sums_that_are_logged(work):
    Path("watching.py").write_text(WATCHING)
    main([*FIT, "--model.objective=watching.Watching"])
    seen = sys.modules.pop("watching").Watching.seen
    (run,) = Path("runs/tiny").glob("forgetting@*/seed-0")
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(seen) == len(rows) == STEPS
    columns = ("train/loss", "train/nll_positive", "train/nll_negative")
    assert seen == [pytest.approx([float(row[column]) for column in columns], rel=1e-9) for row in rows]


@pytest.mark.slow
def test_a_learned_strength_resumes_with_the_same_bits(work):
    options = ["--model.objective=learned.LearnedStrength", "--model.objective.budget=20"]
    steady = [*options, "--model.objective.rate=0"]
    options += ["--model.objective.rate=0.003"]
    for step in (3, 7):
        assert in_process([*FIT, *options, *signal_at(number=9, step=step)]) == -9
    (run,) = Path("runs/tiny").glob("forgetting@*/seed-0")
    assert not (run / "adapter").exists()
    main([*FIT, *options])
    killed = run.rename("killed")
    main([*FIT, *options])
    assert adapter_bytes(killed) == adapter_bytes(run)
    ends = [torch.load(r / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for r in (killed, run)]
    assert ends[0]["objective.strength"] == ends[1]["objective.strength"] > 0.01
    main([*FIT, *steady])  # the control: without its state the run would have ended elsewhere
    (other,) = set(Path("runs/tiny").glob("forgetting@*/seed-0")) - {run}
    assert adapter_bytes(other) != adapter_bytes(run)


def test_a_score_of_ones_own_selects_and_names_the_run(work):
    main([*FIT, "--data.score=scores_of_mine.RelativeReduction", "--data.score.floor=0.5"])
    (run,) = (path for path in Path("runs/tiny").glob("forgetting@*/seed-0"))
    assert "RelativeReduction" in str(run)
    before = json.loads((run / "provenance.json").read_text())["inputs"]["scores"]
    stored = ScoreStore.open(Path("runs/tiny/reference/seed-0/scores")).split("train")
    from scores_of_mine import RelativeReduction

    assert before == ScoredSplit(stored, RelativeReduction(0.5)).hash


def test_a_score_whose_code_changed_does_not_resume_a_run(work):
    options = ["--data.score=scores_of_mine.RelativeReduction"]
    assert in_process([*FIT, *options, *signal_at(number=9, step=5)]) == -9
    file = Path("scores_of_mine.py")
    file.write_text(file.read_text().replace('(tokens["nll_base"] + self.floor)', "self.floor"))
    with pytest.raises(UserError, match="made from another scores"):
        main([*FIT, *options])


def test_the_loop_without_lightning_runs_and_its_loss_falls(work):
    command = [sys.executable, "loop.py", "backbone", "source.jsonl", "runs/tiny/reference/seed-0/scores"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    losses = [float(value) for value in re.findall(r"step \d+: ([\d.]+)", result.stdout)]
    assert len(losses) == 5, result.stderr
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_study_of_ones_own_data_prints_a_table(work, capsys):
    Path("source.jsonl").rename("mine.jsonl")
    main(["table", "mine.yaml", "--run", "--seeds", "2"])
    table = capsys.readouterr().out
    for row in ("Full Tokens", "Random", "Ignoring", "Forgetting", "Bounded"):
        assert re.search(rf"\| {row} +\| 2 seeds +\| [\d.* ±]+ \|", table), table
    assert re.search(r"Bounded − Forgetting .*\[[−+][\d.]+, [−+][\d.]+\]", table), table


@pytest.mark.filterwarnings("ignore")
def test_trls_trainer_computes_equation_8_of_the_whole_step(work, tiny_llama):
    trl = pytest.importorskip("trl", reason="trl is in the extra `test`")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl_of_mine import ForgettingTrainer, collate

    generator = np.random.default_rng(0)
    rows = []
    for length in (5, 30, 9, 14):
        response = np.arange(length) > 2
        positive = response & (generator.random(length) < 0.6)
        rows.append({"input_ids": generator.integers(2, 258, length).tolist(), "response_mask": response.tolist(),
                     "positive_mask": positive.tolist(), "negative_mask": (response & ~positive).tolist()})  # fmt: skip
    losses = []
    for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
        settings = trl.SFTConfig(
            output_dir="trl", per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
            max_steps=1,
            remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, report_to="none", use_cpu=True,
            bf16=False, logging_steps=1, save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        trainer = ForgettingTrainer(
            model=model, args=settings, train_dataset=Dataset.from_list(rows), data_collator=collate,
            processing_class=__import__("conftest").byte_tokenizer(),
        )  # fmt: skip
        trainer.objective.t_min, trainer.objective.t_max, trainer.objective.schedule = 0.3, 0.3, "constant"
        trainer.train()
        losses.append((trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]))
    nll, masks = [], {"positive_mask": [], "negative_mask": []}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        all_nll = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        keep = torch.tensor(row["response_mask"])[1:]
        nll.append(all_nll[keep].detach())
        for name, parts in masks.items():
            parts.append(torch.tensor(row[name])[1:][keep])
    nll, positive, negative = torch.cat(nll), *(torch.cat(parts) for parts in masks.values())
    expected = nll[positive].mean() - 0.3 * nll[negative].mean()
    for loss, norm in losses:
        assert loss == pytest.approx(expected.item(), rel=1e-3)
        assert norm == pytest.approx(losses[0][1], rel=1e-4)
