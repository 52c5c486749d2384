"""Scores are the two models' nll, whatever the batches, shards and ranks they are computed in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from forgetting.errors import UserError
from forgetting.method.scoring import ScoringDataset, score_shard, without_prompt
from forgetting.method.selection import Selection, find_thresholds
from forgetting.method.store import COLUMNS, shard_ranges
from forgetting.model.backbone import load_backbone
from forgetting.model.batch import pad
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora

LENGTHS = [3, 60, 7, 22, 31, 5, 5, 48, 12, 9, 2, 33, 90, 17, 64, 28] * 2


class Made:
    """Examples of unequal length; about half of the tokens are targets, the first never."""

    def __init__(self, lengths: list[int]) -> None:
        generator = np.random.default_rng(0)
        self.lengths = np.array(lengths, dtype=np.int32)
        self.ids = [generator.integers(2, 258, n).astype(np.int32) for n in lengths]
        self.masks = [generator.random(n) < 0.5 for n in lengths]
        for mask in self.masks:
            mask[0], mask[-1] = False, True

    def __len__(self) -> int:
        return len(self.lengths)

    def input_ids(self, i: int) -> np.ndarray:
        return self.ids[i]

    def response_mask(self, i: int) -> np.ndarray:
        return self.masks[i]


@pytest.fixture(scope="module")
def examples() -> Made:
    return Made(LENGTHS)


def language_model(folder: Path, dtype: str = "float32") -> LanguageModel:
    model = add_lora(load_backbone(str(folder), dtype=dtype), Lora(rank=4, dropout=0.1), seed=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return LanguageModel(model).eval()


def scores(
    model: LanguageModel, examples: Made, budget: int = 256, shard_size: int = 512, num_ranks: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Both columns over all examples, in corpus order, from as many ranks as asked for."""
    pending = shard_ranges("train", len(examples), shard_size)
    found = {}
    for rank in range(num_ranks):
        for work in ScoringDataset({"train": examples}, pending, budget, rank, num_ranks):
            shard = score_shard(model, work)
            if shard is not None:
                found[shard.shard.number] = shard
    assert sorted(found) == list(range(len(pending)))
    ordered = [found[number] for number in sorted(found)]
    counts = np.concatenate([shard.num_targets for shard in ordered])
    assert counts.tolist() == [int(mask.sum()) for mask in examples.masks]
    base, reference = (np.concatenate([s.columns[name] for s in ordered]) for name in COLUMNS)
    return base, reference


def one_by_one(model: LanguageModel, examples: Made, shift: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The same by definition: each example alone, its logits from transformers, softmax in float64 by NumPy."""

    def column() -> np.ndarray:
        pieces = []
        for ids, mask in zip(examples.ids, examples.masks, strict=True):
            logits = model.model(input_ids=torch.from_numpy(ids).long()[None]).logits[0].double().numpy()
            places = np.flatnonzero(mask)
            rows = logits[places - shift]
            rows = rows - rows.max(1, keepdims=True)
            pieces.append(np.log(np.exp(rows).sum(1)) - rows[np.arange(len(places)), ids[places]])
        return np.concatenate(pieces)

    with torch.no_grad():
        reference = column()
        with model.adapter_off():
            return column(), reference


def test_both_columns_equal_a_float64_softmax_of_each_example_alone(tiny_llama, examples):
    model = language_model(tiny_llama)
    for ours, expected in zip(scores(model, examples), one_by_one(model, examples), strict=True):
        assert np.abs(ours - expected).max() < 1e-4


def test_the_control_another_alignment_is_seen(tiny_llama, examples):
    model = language_model(tiny_llama)
    base, _ = scores(model, examples)
    shifted, _ = one_by_one(model, examples, shift=0)
    assert np.abs(base - shifted).mean() > 0.1


def test_numbers_do_not_depend_on_batches_shards_and_ranks(tiny_llama, examples):
    model = language_model(tiny_llama)
    expected = scores(model, examples, budget=1)
    for budget, shard_size, num_ranks in [(10**6, 512, 1), (256, 512, 1), (100, 5, 1), (256, 5, 2), (256, 3, 4)]:
        for ours, alone in zip(scores(model, examples, budget, shard_size, num_ranks), expected, strict=True):
            assert np.abs(ours - alone).max() < 1e-5


def test_the_base_is_the_backbone_without_an_adapter(tiny_llama, examples):
    model = language_model(tiny_llama)
    base, reference = scores(model, examples)
    plain = LanguageModel(load_backbone(str(tiny_llama), dtype="float32")).eval()
    work = ScoringDataset({"train": examples}, shard_ranges("train", len(examples), 512), 256)[0]
    with torch.inference_mode():
        alone = torch.cat([plain(batch) for batch in work.micro_batches])
    assert np.array_equal(np.sort(base), np.sort(alone.numpy()))
    assert np.abs(base - reference).mean() > 0.01
    assert isinstance(model.model, PeftModel)


def test_ranks_take_whole_shards_and_equally_many_forward_passes(examples):
    pending = shard_ranges("train", len(examples), 5)  # 7 shards for 3 ranks: two stay idle in the last round
    rounds = [list(ScoringDataset({"train": examples}, pending, 100, rank, 3)) for rank in range(3)]
    taken = [work.shard for rank in rounds for work in rank if work.shard is not None]
    assert sorted(shard.number for shard in taken) == list(range(7))
    for works in zip(*rounds, strict=True):
        assert len({len(work.micro_batches) for work in works}) == 1
    idle = rounds[2][-1]
    assert idle.shard is None
    assert all(batch.num_targets == 0 for batch in idle.micro_batches)


def test_a_round_without_a_shard_gives_no_scores(tiny_llama, examples):
    work = ScoringDataset({"train": examples}, shard_ranges("train", 4, 4), 100, rank=1, num_ranks=2)[0]
    assert score_shard(language_model(tiny_llama), work) is None


def changed_fraction(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Fraction of tokens whose mask changes at ρ = 0.7."""
    masks = []
    for columns in (a, b):
        score = columns[0] - columns[1]
        positive, _ = find_thresholds(lambda score=score: [score], len(score), Selection(0.7)).masks(score, 0)
        masks.append(positive)
    return float(np.mean(masks[0] != masks[1]))


def test_bfloat16_moves_few_tokens_across_the_threshold(tiny_llama, examples):
    """bfloat16 keeps 8 bits. The composition of a batch moves less than the dtype itself does."""
    exact = scores(language_model(tiny_llama), examples)
    model = language_model(tiny_llama, "bfloat16")
    first, second = scores(model, examples, budget=256), scores(model, examples, budget=1)
    far = max(np.abs(a - b).max() for a, b in zip(first, exact, strict=True))
    by_batch = max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))
    assert by_batch <= far
    assert far < 0.5
    assert changed_fraction(first, second) <= changed_fraction(first, exact) + 0.01
    assert changed_fraction(first, exact) < 0.05
    assert changed_fraction(exact, exact) == 0


def test_without_its_prompt_a_sequence_keeps_its_responses_and_the_end_of_each_header() -> None:
    ids = np.arange(14)
    mask = np.isin(ids, [7, 8, 12, 13])
    kept, targets = without_prompt(ids, mask)
    assert kept.tolist() == [0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert targets.tolist() == [False, False, False, False, True, True, False, False, False, True, True]
    kept, targets = without_prompt(ids[:4], np.isin(ids[:4], [2, 3]))  # a header shorter than what would stay
    assert kept.tolist() == [0, 1, 2, 3]
    assert targets.tolist() == [False, False, True, True]


def test_the_promptless_column_is_the_bases_nll_of_the_responses_alone(tiny_llama: Path) -> None:
    model, examples = language_model(tiny_llama), Made(LENGTHS)
    examples.masks = [np.arange(n) >= (n + 1) // 2 for n in LENGTHS]  # a prompt, and a response as long
    for work in ScoringDataset({"train": examples}, shard_ranges("train", len(examples), 5), 128, promptless=True):
        scored = score_shard(model, work)
        assert scored is not None
        assert list(scored.columns) == ["nll_base", "nll_reference", "nll_promptless"]
        alone = []
        for i in range(scored.shard.first, scored.shard.last):
            batch = pad([without_prompt(examples.input_ids(i), examples.response_mask(i))])
            with torch.no_grad(), model.adapter_off():
                alone.append(model(batch).numpy())
        np.testing.assert_allclose(scored.columns["nll_promptless"], np.concatenate(alone), rtol=1e-4, atol=1e-5)
        assert not np.allclose(scored.columns["nll_promptless"], scored.columns["nll_base"])


def test_the_column_is_added_to_a_store_and_stays_and_what_was_there_is_the_same(scored_work: Path) -> None:
    from small_experiment import METHOD, REFERENCE

    from forgetting.cli import main
    from forgetting.method.store import ScoreStore

    folder = scored_work / "runs/tiny/reference/seed-0/scores"
    before = ScoreStore.open(folder)
    values = {name: before.split("train").column(name).copy() for name in COLUMNS}
    own = ["--config", METHOD, "--data.score", "PromptFit"]
    with pytest.raises(UserError, match=r"reads nll_promptless; the store has .* Score again with --data.promptless"):
        main(["fit", *own])
    main(["score", "--config", REFERENCE, "--data.promptless", "true"])
    after = ScoreStore.open(folder)
    assert after.columns == (*COLUMNS, "nll_promptless")
    for name, column in values.items():
        np.testing.assert_array_equal(after.split("train").column(name), column)
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*.arrow")}
    main(["score", "--config", REFERENCE])  # it is not asked for, and stays
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.arrow")} == written
    main(["fit", *own])
