"""Time of an optimizer step of each objective against Eq. 8's, in pairs that run by turns.

    python benchmarks/objectives.py --rounds 12

A step is what training does with it: forward and backward pass over all micro-batches, the objective's own statistics
and its update. The ratio is the geometric mean over pairs, with a 95 % interval (Student's t of their logarithms).
"""

import argparse
import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from setting import SHAPES, Seconds, adapted, alternate, data_module, device, write_backbone, write_source

from forgetting.method.objectives import ConstrainedForgetting, Forgetting, MeanNLL, Objective
from forgetting.method.online import OnlineForgetting, OnlineIgnoring
from forgetting.method.response_tokens import Step, StepSums
from forgetting.method.steps import LabeledBatch, StepDataset
from forgetting.method.terms import (
    Capped,
    CappedAboveBase,
    EntropyAdaptive,
    Power,
    ProFit,
    SatImp,
    SequenceNPO,
    Taper,
    TokenNPO,
    TokenSimNPO,
    Unlikelihood,
    WeightedByQ,
)
from forgetting.model.language_model import LanguageModel

NEGATIVE = (
    Capped(), CappedAboveBase(), Power(), TokenNPO(), TokenSimNPO(), SequenceNPO(), SatImp(), Unlikelihood(), Taper(),
    WeightedByQ(Unlikelihood()), ProFit(),
)  # fmt: skip
EQUATION_8 = "Eq. 8"


def objectives() -> dict[str, Objective]:
    """Every objective by name; the paper's first."""
    made: dict[str, Objective] = {EQUATION_8: Forgetting(), "mean nll (Ignoring)": MeanNLL()}
    made |= {f"negative {type(term).__name__}": Forgetting(negative=term) for term in NEGATIVE}
    made["positive EntropyAdaptive"] = Forgetting(positive=EntropyAdaptive())
    made |= {"λ by a constraint": ConstrainedForgetting(), "one run, Ignoring": OnlineIgnoring()}
    return made | {"one run, Forgetting": OnlineForgetting()}


def take_step(model: LanguageModel, objective: Objective, batches: list[LabeledBatch], step: Step) -> None:
    """Forward and backward pass, statistics and update."""
    statistics = []
    for batch in batches:
        tokens = objective.select(batch.under(model, objective), step)
        objective(tokens, step).backward()
        statistics.append(objective.statistics(tokens))
    objective.after_step(StepSums(step, 0.0, 0.0, 0.0, torch.stack(statistics).sum(0)))


@torch.no_grad()
def score(model: LanguageModel, batches: list[LabeledBatch]) -> None:
    """What a score store takes: the nll of both models."""
    model.eval()
    for batch in batches:
        with model.adapter_off():
            model(batch.inputs)
        model(batch.inputs)
    model.train()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape, place, generator = SHAPES[options.shape], device(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = write_backbone(folder / "backbone", shape)
        data = data_module(backbone, write_source(folder / "source.jsonl", 20, shape.vocab), 8, folder / "corpora")
        data.setup("fit")
        split, model = data.tokens.split("train"), adapted(backbone).to(place)

    def masks(i: int) -> tuple[np.ndarray, np.ndarray]:
        positive = np.random.default_rng([1, i]).random(int(split.response_mask(i).sum())) < 0.7
        return positive, ~positive

    every = StepDataset(split, masks, data.token_budget)[0, range(8)]
    for batch in every.micro_batches:
        count = len(batch.positive_mask)
        batch.columns = {
            column: torch.from_numpy(generator.uniform(0, 10, count).astype(np.float32)).to(place)
            for column in ("nll_base", "nll_reference")
        }
        batch.positive_mask, batch.negative_mask = batch.positive_mask.to(place), batch.negative_mask.to(place)
        batch.inputs.input_ids = batch.inputs.input_ids.to(place)
        batch.inputs.response_mask = batch.inputs.response_mask.to(place)
    made = {name: objective.to(place) for name, objective in objectives().items()}
    step = Step(50, 100, every.num_positive, every.num_negative)
    contenders = {
        name: functools.partial(take_step, model, objective, every.micro_batches, step)
        for name, objective in made.items()
    }
    contenders["scoring the same tokens"] = functools.partial(score, model, every.micro_batches)
    alternate(contenders, 1)  # to warm up
    print(
        f"{every.num_tokens} tokens a step, {len(every.micro_batches)} micro-batches, {options.rounds} pairs, {place}"
    )
    for name in contenders:
        if name != EQUATION_8:
            taken = alternate({key: contenders[key] for key in (EQUATION_8, name)}, options.rounds)
            print(f"  {name:<28}{described(taken[name], taken[EQUATION_8])}", flush=True)


def described(ours: list[Seconds], paper: list[Seconds]) -> str:
    """Geometric means of the ratios, by the clock and of the processor, with their intervals."""
    texts = []
    for kind, words in (("wall", "by the clock"), ("cpu", "of the processor")):
        logs = np.log([getattr(a, kind) / getattr(b, kind) for a, b in zip(ours, paper, strict=True)])
        half = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
        mean = float(logs.mean())
        texts.append(f"{math.exp(mean):.3f} [{math.exp(mean - half):.3f}, {math.exp(mean + half):.3f}] {words}")
    return ", ".join(texts)


if __name__ == "__main__":
    main()
