"""The authors' training against a transcription of it: micro-batches of two, padded, full logits, shifted masks.

The transcription is of the facts alone (docs/deviations.md): 4 devices take a micro-batch of 2 consecutive sequences
each, 3 times in an optimizer step; the loss is the mean over these micro-batches of mean nll(positive) − λ · mean
nll(negative) in each; λ's step is the index of the loader; in Forgetting runs the masks are one position short. It uses
nothing of forgetting/method.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import small_configuration
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from small_experiment import METHOD, REFERENCE, write_experiments
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from forgetting.cli import main
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import prepare_corpus
from forgetting.corpus.tokens import tokenize_corpus
from forgetting.errors import UserError
from forgetting.method.objectives import Forgetting, MeanNLL, Objective
from forgetting.method.published import PublishedStepDataset
from forgetting.method.response_tokens import Step
from forgetting.method.steps import StepDataset
from forgetting.method.store import ScoreStore
from forgetting.model.backbone import load_tokenizer
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora
from forgetting.runs.naming import Naming
from forgetting.runs.token_weights import write_token_weights

DEVICES, ACCUMULATION, SEQUENCES = 4, 3, 2
PAD = 7  # any token

# --- the transcription ------------------------------------------------------------------------------------------------

Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A sequence: token ids, and where it has a positive and a negative label, all `[time]`."""


def micro_batch_loss(network, rows: list[Row], coefficient: float, masks_are_short: bool):
    """The loss of one device's micro-batch."""
    width = max(len(ids) for ids, _, _ in rows)
    ids = torch.full((len(rows), width), PAD)
    attended, positive, negative = torch.zeros((3, len(rows), width), dtype=torch.bool)
    for row, (tokens, *labels) in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens).long()
        attended[row, : len(tokens)] = True
        for mask, label in zip((positive, negative), labels, strict=True):
            mask[row, : len(tokens)] = torch.from_numpy(label)
    logits = network(input_ids=ids, attention_mask=attended.long()).logits
    nll = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(rows), -1)
    end = -1 if masks_are_short else None
    means = []
    for mask in (positive[:, 1:end], negative[:, 1:end]):
        chosen = nll[:, : mask.shape[1]][mask]
        means.append(chosen.mean() if len(chosen) else 0.0 * nll.sum())
    return means[0] - coefficient * means[1]


def published_loss(network, rows: list[Row], step: int, total_steps: int, t: tuple[float, float] | None):
    """The loss of an optimizer step. `t` is (t_min, t_max) of a Forgetting run."""
    micro_batches = [rows[first : first + SEQUENCES] for first in range(0, len(rows), SEQUENCES)]
    losses = []
    for accumulated in range(ACCUMULATION):
        index = step * ACCUMULATION + accumulated
        coefficient = (t[1] - t[0]) * index / (total_steps * ACCUMULATION) if t else 0.0
        for _ in range(min(DEVICES, len(micro_batches) - len(losses))):
            losses.append(micro_batch_loss(network, micro_batches[len(losses)], coefficient, t is not None))
    assert len(losses) == len(micro_batches)
    return torch.stack(losses).mean()


# --- one step, in float64 ---------------------------------------------------------------------------------------------


class Made:
    """Examples of which pairs are of one length, of unequal lengths, and cut off outside a response."""

    def __init__(self, number: int) -> None:
        lengths = [12, 12, 40, 9, 3, 61, 22, 31, 8, 8, 5, 48, 17, 9, 30, 30, 2, 33, 4, 7, 28, 11, 6, 19, 14, 14, 9, 20]
        self.lengths = np.array([lengths[i % len(lengths)] for i in range(number)], np.int32)
        generator = np.random.default_rng(3)
        self.ids = [generator.integers(2, 258, n).astype(np.int32) for n in self.lengths]
        self.responses = [generator.random(n) < 0.6 for n in self.lengths]
        for i, mask in enumerate(self.responses):
            mask[0], mask[-1] = False, i not in (2, 14)  # these two end in a prompt

    def __len__(self) -> int:
        return len(self.lengths)

    def input_ids(self, i: int) -> np.ndarray:
        return self.ids[i]

    def response_mask(self, i: int) -> np.ndarray:
        return self.responses[i]


def full(i: int, count: int) -> np.ndarray:
    return np.ones(count, np.bool_)


def by_token(i: int, count: int) -> np.ndarray:
    if i in (6, 7):
        return np.ones(count, np.bool_)  # a pair without a negative token
    return (np.random.default_rng([7, i]).random(count) < 0.6) & (i not in (8, 9))  # and one without a positive


def by_sequence(i: int, count: int) -> np.ndarray:
    return np.full(count, i % 3 != 0)


METHODS: dict[str, tuple[Objective, Any]] = {
    "full": (MeanNLL(), full),
    "ignoring": (MeanNLL(), by_token),
    "forgetting by token": (Forgetting(1e-4, 0.25), by_token),
    "forgetting by sequence": (Forgetting(1e-4, 0.25), by_sequence),
}
STEP, TOTAL = 5, 9


@pytest.fixture(scope="module")
def network() -> LanguageModel:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(small_configuration("llama")).double().requires_grad_(False)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    peft_model = add_lora(backbone, Lora(rank=4, dropout=0.0), seed=0).double()
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return LanguageModel(peft_model)


def gradient(network: LanguageModel) -> torch.Tensor:
    taken = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    network.zero_grad()
    return taken


def dataset_of(examples: Made, objective: Objective, positive, *division: int, plain: bool = False) -> StepDataset:
    def masks(i: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = positive(i, int(examples.responses[i].sum()))
        chosen.setflags(write=False)  # as a mapped file's may be
        return chosen, ~chosen

    if plain:
        return StepDataset(examples, masks, *division)  # type: ignore[arg-type] - budget, rank, number of ranks
    return PublishedStepDataset(24, objective.needs_negative, examples, masks, *division)


def ours(network, objective: Objective, positive, number: int, budget: int = 10**6, num_ranks: int = 1, plain=False):
    """Loss and gradient of a step as `FineTuner.training_step` takes it, ranks one after another; and its counts."""
    total, counts = 0.0, set()
    for rank in range(num_ranks):
        step = dataset_of(Made(number), objective, positive, budget, rank, num_ranks, plain=plain)[STEP, range(number)]
        counts.add((step.num_positive, step.num_negative))
        for batch in step.micro_batches:
            tokens = batch.tokens(network(batch.inputs))
            share = batch.share(objective, tokens, Step(STEP, TOTAL, step.num_positive, step.num_negative))
            share.backward()
            total += share.item()
    (every_rank,) = counts
    return total, gradient(network), every_rank


def theirs(network: LanguageModel, objective: Objective, positive, number: int):
    examples, rows = Made(number), []
    for i in range(number):
        responses = examples.responses[i]
        labels = np.zeros((2, len(responses)), np.bool_)
        labels[0, responses] = positive(i, int(responses.sum()))
        labels[1] = responses & ~labels[0]
        rows.append((examples.ids[i], *labels))
    t = (1e-4, 0.25) if isinstance(objective, Forgetting) else None
    loss = published_loss(network.causal_lm, rows, STEP, TOTAL, t)
    loss.backward()
    return loss.item(), gradient(network)


@pytest.mark.parametrize("number", [24, 7], ids=["a whole step", "the last step, with a sequence alone"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_the_authors_for_any_division_and_number_of_ranks(network, method, number):
    loss, expected = theirs(network, *METHODS[method], number)
    assert math.isfinite(loss)
    # All but the first tear pairs apart, and the last leaves ranks without a sequence at times.
    for division in ((10**6, 1), (70, 1), (10**6, 2), (70, 2), (1, 5)):
        value, found, _ = ours(network, *METHODS[method], number, *division)
        assert value == pytest.approx(loss, rel=1e-12), division
        assert (found - expected).norm() <= 1e-12 * expected.norm(), division


@pytest.mark.parametrize("method", METHODS)
def test_the_control_equation_8_over_the_step_is_another_loss(network, method):
    loss, expected = theirs(network, *METHODS[method], 24)
    value, found, _ = ours(network, *METHODS[method], 24, plain=True)
    assert abs(value - loss) > 1e-3 * abs(loss)
    assert (found - expected).norm() > 1e-2 * expected.norm()


def test_the_counts_of_a_step_are_without_the_dropped_targets(network):
    examples = Made(24)
    responses = sum(int(mask.sum()) for mask in examples.responses)
    # Of 12 pairs three are of one length, and one sequence in two of the pairs ends in a prompt.
    for method, dropped in (("full", 0), ("ignoring", 0), ("forgetting by token", 12 + 3 - 2)):
        _, _, counts = ours(network, *METHODS[method], 24)
        assert sum(counts) == responses - dropped


def test_of_a_pair_the_longest_loses_its_last_target_and_both_do_at_one_length():
    labels = dataset_of(Made(6), Forgetting(), full, 10**6).labels(range(6))
    # 12 and 12 tokens; 40 and 9, of which the longer ends in a prompt; 3 and 61.
    assert [bool(positive[-1]) for positive, _ in labels] == [False, False, True, True, True, False]
    assert all(positive[:-1].all() and not negative.any() for positive, negative in labels)


class PerExample(Objective):
    """The mean over positive examples' mean nll, to see what an objective is shown."""

    columns = ("nll_base",)

    def forward(self, tokens, step):
        assert torch.equal(tokens.example, tokens.example.sort().values)
        assert sorted(set(tokens.example.tolist())) == list(range(int(tokens.example.max()) + 1))
        assert step.num_positive >= len(tokens.nll)
        assert torch.equal(tokens["nll_base"], tokens.nll.detach())
        return (tokens.nll / step.num_positive).sum()


@pytest.mark.parametrize("budget", [1, 70, 10**6])
def test_an_objective_of_ones_own_is_shown_one_pair_at_a_time(network, budget):
    dataset = dataset_of(Made(24), PerExample(), full, budget)
    step = dataset[STEP, range(24)]
    total = 0.0
    for batch in step.micro_batches:
        nll = network(batch.inputs)
        batch.columns["nll_base"] = nll.detach()
        total += batch.share(PerExample(), batch.tokens(nll), Step(STEP, TOTAL, step.num_positive, 0)).item()
    assert total == pytest.approx(theirs(network, *METHODS["full"], 24)[0], rel=1e-12)


# --- whole runs, through the command line -----------------------------------------------------------------------------

OVERLAY = Path(__file__).parent.parent / "configs/published.yaml"
CORPUS: dict[str, Any] = {"num_train": 106, "num_reference": 30, "num_validation": 8}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small experiment over more sequences: a step of 24 is a whole one, and the last one is short."""
    monkeypatch.chdir(tmp_path)
    write_experiments(tmp_path)
    rows = [
        {"question": f"What is {i} plus {i % 7}?", "answer": f"It is {i + i % 7}" + "." * (i % 11)} for i in range(160)
    ]
    Path("source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in (REFERENCE, METHOD):
        settings = yaml.safe_load(Path(file).read_text())
        settings["data"]["corpus"] |= CORPUS
        settings["data"]["batch_size"] = 24
        settings["model"]["lora"] = {"rank": 4, "dropout": 0.0}
        settings["trainer"] |= {"max_epochs": 1, "val_check_interval": 1.0}
        Path(file).write_text(yaml.safe_dump(settings))
    return tmp_path


def authors_run(rows: list[Row], t: tuple[float, float] | None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a run over these sequences, in their order, and the adapter that it ends with."""
    backbone = AutoModelForCausalLM.from_pretrained("backbone").requires_grad_(False)
    model = add_lora(backbone, Lora(rank=4, dropout=0.0), seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    steps = [rows[first : first + 24] for first in range(0, len(rows), 24)]
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.03 * len(steps)), len(steps))
    losses = []
    for number, step in enumerate(steps):
        loss = published_loss(model, step, number, len(steps), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in get_peft_model_state_dict(model).items()}


def assert_same_run(folder: Path, rows: list[Row], t: tuple[float, float] | None) -> None:
    losses, adapter = authors_run(rows, t)
    with (folder / "metrics.csv").open(newline="") as file:
        logged = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == pytest.approx(losses, rel=1e-5)
    ours = load_file(folder / "adapter/adapter_model.safetensors")
    assert ours.keys() == adapter.keys()
    for name, tensor in adapter.items():
        assert (ours[name] - tensor).norm() <= 1e-5 * tensor.norm()


@pytest.mark.slow
def test_runs_with_the_overlay_are_the_authors(work: Path) -> None:
    overlay = ["--config", str(OVERLAY)]
    main(["fit", "--config", REFERENCE, *overlay])
    main(["score", "--config", REFERENCE, *overlay])
    sources = {"made": Source("source.jsonl", prompt="{question}", response="{answer}")}
    corpus = prepare_corpus(CorpusConfig(sources, **CORPUS), Path("corpora"))
    tokens = tokenize_corpus(corpus, load_tokenizer("backbone"), "tulu", 64)

    def rows(split: str, positive: list[np.ndarray] | None, unlearns: bool = False) -> list[Row]:
        """Sequences in file order; `positive` says which of all response tokens are."""
        made = []
        for i in range(len(tokens.split(split))):
            responses = np.array(tokens.split(split).response_mask(i))
            labels = np.zeros((2, len(responses)), np.bool_)
            labels[0, responses] = True if positive is None else positive[i]
            labels[1] = responses & ~labels[0] & unlearns
            made.append((np.array(tokens.split(split).input_ids(i)), *labels))
        return made

    reference = Path("runs/tiny/reference@published/seed-0")
    assert_same_run(reference, rows("reference", None), None)

    stored = ScoreStore.open(reference / "scores").split("train")
    scores = [np.array(e["nll_base"] - e["nll_reference"]) for e in map(stored.example, range(CORPUS["num_train"]))]

    def top(fraction: float, values: list[np.ndarray]) -> list[np.ndarray]:
        every = np.sort(np.concatenate(values))[::-1]
        return [value >= every[round(fraction * len(every)) - 1] for value in values]

    means = [np.array([score.mean(dtype=np.float64)]) for score in scores]
    forgetting, by_sequence, mean = (1e-4, 0.25), ["--data.granularity", "sequence"], ["--model.objective", "MeanNLL"]
    for options, chosen, t in (
        ([], rows("train", top(0.7, scores), unlearns=True), forgetting),
        (by_sequence, rows("train", top(0.7, means), unlearns=True), forgetting),
        ([*mean, "--data.positive_fraction", "0.5"], rows("train", top(0.5, scores)), None),
        ([*mean, "--data.positive_fraction", "all"], rows("train", None), None),
    ):
        arguments = ["fit", "--config", METHOD, *overlay, *options]
        main(arguments)
        run_id = Naming(arguments).run_id
        assert run_id.startswith("tiny/forgetting@published")
        assert_same_run(Path("runs") / run_id / "seed-0", chosen, t)


def test_a_step_of_half_a_pair_is_refused(work: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size is 5; .* pairs of consecutive sequences, so an even number"):
        main(["fit", "--config", REFERENCE, "--config", str(OVERLAY), "--data.batch_size=5"])
    assert not Path("runs").exists()


def test_weights_for_other_trainers_are_refused(scored_work: Path) -> None:
    Path("experiments/tiny/published.yaml").write_text(
        Path(METHOD).read_text() + "  shuffle: false\n  normalization: published\n"
    )
    with pytest.raises(UserError, match=r"published.yaml has data.normalization published: .* whole optimizer step"):
        write_token_weights(Path("experiments/tiny/published.yaml"), Path("weights.parquet"))
    assert not Path("weights.parquet").exists()
