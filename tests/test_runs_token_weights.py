"""Token weights in Parquet: the selection, and the losses that another trainer computes with them."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from small_experiment import METHOD, REFERENCE, RUN, STEPS, metrics

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.method.objectives import scheduled_coefficient
from forgetting.runs.token_weights import open_experiment

PAGE = Path(__file__).parents[1] / "docs/using.md"
FILE = "weights.parquet"


def exported(*source: str) -> tuple[dict, dict]:
    """Columns and metadata of an export."""
    main(["export", *source, "--token-weights", FILE])
    table = pq.read_table(FILE)
    return table.to_pydict(), json.loads(table.schema.metadata[b"forgetting"])


def change(group: str, **values: object) -> None:
    """Set keys of the method's experiment."""
    content = yaml.safe_load(Path(METHOD).read_text())
    content[group] |= values
    Path(METHOD).write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("forget_fraction", [None, 0.1])
def test_weights_are_the_masks_of_training(scored_work, forget_fraction):
    change("data", forget_fraction=forget_fraction)
    columns, facts = exported(METHOD)
    data = open_experiment(Path(METHOD)).data
    split = data.tokens.split("train")
    masks = data.masks(split)
    assert len(columns["weights"]) == len(split) == 40
    seen = set()
    for i in range(len(split)):
        ids, responses = split.input_ids(i), split.response_mask(i)
        weights = np.array(columns["weights"][i])
        assert columns["input_ids"][i] == ids.tolist()
        assert columns["labels"][i] == np.where(responses, ids, -100).tolist()
        assert not weights[~responses].any()
        positive, negative = masks(i)
        assert ((weights[responses] == 1) == positive).all()
        assert ((weights[responses] == -0.25) == negative).all()
        seen |= set(weights[responses].tolist())
    assert seen == {1.0, -0.25} | ({0.0} if forget_fraction else set())
    assert facts["coefficients"] == [scheduled_coefficient(step, STEPS, 1e-4, 0.25) for step in range(STEPS)]
    assert facts["made_from"]["tokens"] == data.tokens.content_hash
    assert str(Path.cwd()) not in json.dumps(facts)


def test_a_reference_learns_every_token(scored_work):
    columns, facts = exported(REFERENCE)
    weights, labels = (np.concatenate(columns[name]) for name in ("weights", "labels"))
    assert (weights == (labels != -100)).all()
    assert set(facts["coefficients"]) == {0.0}
    assert facts["made_from"]["split"] == "reference"


@pytest.mark.filterwarnings("ignore")
def test_trl_computes_our_losses(scored_work, monkeypatch):
    """In micro-batches, over the end of an epoch with its smaller step, with clipping that bites and growing λ."""
    trl = pytest.importorskip("trl", reason="trl is in the extra `test`")
    import torch

    from forgetting.model.backbone import load_backbone
    from forgetting.model.lora import Lora, add_lora

    (code,) = re.findall(r"`weighted.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    Path("weighted.py").write_text(code)
    monkeypatch.syspath_prepend(scored_work)
    monkeypatch.delitem(sys.modules, "weighted", raising=False)
    from weighted import WeightedTrainer

    change("model", lora={"rank": 4, "dropout": 0.0}, gradient_clip=0.5)
    main(["fit", "--config", METHOD, "--trainer.log_every_n_steps=1"])
    ours = [(float(row["train/loss"]), float(row["train/gradient_norm"])) for row in metrics() if row["train/loss"]]
    _, facts = exported(str(RUN))
    order, optimizer = facts["order"], facts["optimizer"]
    settings = trl.SFTConfig(
        output_dir="trl", per_device_train_batch_size=2, gradient_accumulation_steps=3,
        num_train_epochs=2, learning_rate=optimizer["learning_rate"], lr_scheduler_type="linear", warmup_steps=1,
        weight_decay=0.0, max_grad_norm=optimizer["gradient_clip"], logging_steps=1, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True}, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    model = add_lora(load_backbone("backbone", dtype="float32"), Lora(rank=4, dropout=0.0), seed=0)
    losses: list[float] = []

    class Recorded(WeightedTrainer):
        def compute_loss(self, *arguments, **options):
            loss = super().compute_loss(*arguments, **options)
            if len(losses) <= self.state.global_step:
                losses.append(0.0)
            losses[self.state.global_step] += loss.item()  # Trainer's log rounds
            return loss

    from conftest import byte_tokenizer

    trainer = Recorded(FILE, model=model, args=settings, processing_class=byte_tokenizer())
    trainer.train()
    assert len(losses) == len(ours) == order["total_steps"] == STEPS
    theirs = torch.tensor(losses)
    torch.testing.assert_close(theirs, torch.tensor([loss for loss, _ in ours]), rtol=0, atol=1e-5)
    assert max(norm for _, norm in ours) > 0.5


def test_the_selection_of_a_run_is_refused_where_its_scores_changed(scored_work):
    change("trainer", max_steps=2)
    main(["fit", "--config", METHOD])
    exported(str(RUN))
    Path(FILE).unlink()
    record = json.loads((RUN / "provenance.json").read_text())
    record["inputs"]["scores"] = "0" * 64
    (RUN / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"was trained with another scores"):
        exported(str(RUN))
    exported(METHOD)  # the experiment's selection of now


def test_without_scores_it_says_how_to_make_them(scored_work):
    shutil.rmtree("runs/tiny/reference/seed-0/scores")
    with pytest.raises(UserError, match=r"Make it with\s+python -m forgetting score --config"):
        exported(METHOD)
    assert not Path(FILE).exists()


def test_an_objective_that_is_no_weighted_mean_is_refused(scored_work):
    Path("mine.py").write_text(
        "from forgetting.method.objectives import Forgetting\nclass Mine(Forgetting):\n    pass\n"
    )
    sys.path.insert(0, str(scored_work))
    try:
        change("model", objective={"class_path": "mine.Mine"})
        with pytest.raises(UserError, match=r"The objective Mine is no weighted mean of nll"):
            exported(METHOD)
    finally:
        sys.path.remove(str(scored_work))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--token-weights", FILE], r"There is no run none: no fit.yaml in it"),
        (["source.jsonl", "--token-weights", FILE], r"a run's folder or an experiment's YAML file was expected"),
        ([METHOD], r"Say what to export"),
    ],
)
def test_what_cannot_be_exported_is_refused(scored_work, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["export", *arguments])
    assert not Path(FILE).exists()
