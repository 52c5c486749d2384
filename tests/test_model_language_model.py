"""One code path for every family: nll as the model's own logits give it, the adapter on and off."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_configuration, write_backbone
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PretrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from forgetting.errors import UserError
from forgetting.model.backbone import backbone_identity, load_backbone, load_configuration, load_tokenizer
from forgetting.model.batch import PASS_COST, cut_by_tokens, pad, shift
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import PROJECTIONS, Lora, add_lora, default_targets, load_lora

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, PretrainedConfig] = {
    **{name: small_configuration(name) for name in ("llama", "llama-untied", "qwen2", "gpt-neo")},
    "gemma2 (capped logits)": Gemma2Config(**SMALL, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "granite (scaled logits)": GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere (scaled logits)": CohereConfig(**SMALL, logit_scale=0.25),
}


def causal_lm(configuration: PretrainedConfig, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration).to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def sequences(vocabulary: int, lengths=(9, 20, 3)):
    generator = np.random.default_rng(0)
    return [(generator.integers(0, vocabulary, n), np.arange(n) >= max(1, n // 2)) for n in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_nll_is_that_of_the_models_own_logits_one_sequence_at_a_time(family):
    model = causal_lm(FAMILIES[family])
    rows = sequences(FAMILIES[family].vocab_size)
    with torch.no_grad():
        ours = LanguageModel(model)(pad(rows))
        theirs = []
        for ids, mask in rows:
            logits = model(input_ids=torch.tensor(ids)[None]).logits[0].double()
            nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids)[1:], reduction="none")
            theirs.append(nll[torch.tensor(mask)[1:]])
    # Some families compute attention or norms in float32 whatever the weights.
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-5, atol=1e-5)


def test_logits_that_are_changed_in_an_unknown_way_are_refused(monkeypatch):
    model = causal_lm(FAMILIES["llama"])
    original = type(model).forward

    def doubled(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(type(model), "forward", doubled)
    with pytest.raises(UserError, match="LlamaForCausalLM does something to its logits"):
        LanguageModel(model)


@pytest.mark.parametrize("family", ["llama", "llama-untied", "qwen2", "gpt-neo"])
def test_the_adapter_off_is_the_base(family):
    base = causal_lm(FAMILIES[family])
    batch = pad(sequences(258))
    with torch.no_grad():
        before = LanguageModel(base)(batch)
        model = add_lora(base, Lora(rank=4), seed=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
        adapted = LanguageModel(model).eval()
        with adapted.adapter_off():
            torch.testing.assert_close(adapted(batch), before, rtol=0, atol=0)
        assert not torch.allclose(adapted(batch), before)


def test_default_targets_are_the_seven_projections_or_every_linear_layer():
    assert default_targets(causal_lm(FAMILIES["llama"])) == PROJECTIONS
    model = add_lora(causal_lm(FAMILIES["gpt-neo"]), Lora(rank=2), seed=0)
    adapted = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"}  # and not the head


@pytest.mark.parametrize(("lora", "trained"), [
    (Lora(rank=2, dropout=0.0, modules_to_save=["lm_head"]), "lm_head"),
    (Lora(rank=2, dropout=0.0, target_modules=["q_proj", "lm_head"]), "lm_head"),
])  # fmt: skip
def test_a_head_that_is_trained_or_adapted_takes_the_ordinary_path(lora, trained):
    model = add_lora(causal_lm(FAMILIES["llama-untied"]), lora, seed=0)
    language_model, rows = LanguageModel(model), sequences(258)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(language_model(pad(rows)).sum(), parameters)
    total = torch.zeros((), dtype=torch.float64)
    for ids, mask in rows:
        logits = model(input_ids=torch.tensor(ids)[None]).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids)[1:], reduction="none")
        total = total + nll[torch.tensor(mask)[1:]].sum()
    theirs = torch.autograd.grad(total, parameters)
    assert any(trained in name for name, p in model.named_parameters() if p.requires_grad)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm().clamp(min=1e-3)


def test_the_initialisation_follows_the_seed_and_leaves_other_draws_alone():
    def weights(seed):
        torch.manual_seed(123)
        model = add_lora(causal_lm(FAMILIES["llama"]), Lora(rank=2), seed)
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    model = causal_lm(FAMILIES["llama"])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    add_lora(model, Lora(rank=2), seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_an_adapter_that_is_not_there_or_does_not_fit_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"adapter_config.json is missing"):
        load_lora(causal_lm(FAMILIES["llama"]), tmp_path)
    add_lora(causal_lm(FAMILIES["llama"], torch.float32), Lora(rank=2), 0).save_pretrained(tmp_path / "a")
    assert isinstance(load_lora(causal_lm(FAMILIES["llama"]), tmp_path / "a"), PeftModel)
    wider = small_configuration("llama")
    wider.intermediate_size = 64
    with pytest.raises(UserError, match="does not fit"):
        load_lora(causal_lm(wider), tmp_path / "a")


def test_a_folder_is_known_by_its_content(tmp_path: Path):
    write_backbone(tmp_path / "a")
    write_backbone(tmp_path / "b")
    write_backbone(tmp_path / "c", seed=1)
    hashes = [backbone_identity(str(tmp_path / name))["hash"] for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_model_that_looks_ahead_is_refused():
    bert = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    with pytest.raises(UserError, match="BertLMHeadModel is not causal"):
        LanguageModel(causal_lm(bert))
    bert.is_decoder = True  # causal now, but its head is more than a linear layer
    with pytest.raises(UserError, match="does something to its logits"):
        LanguageModel(causal_lm(bert))


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path):
    t5 = T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"could not be loaded|encoder with a decoder"):
        load_backbone(str(tmp_path))


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no config.json"):
        load_backbone(str(tmp_path))
    with pytest.raises(UserError, match="no model folder"):
        load_tokenizer(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        load_configuration("someone/unheard-of", revision="abc")
    write_backbone(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(str(tmp_path / "cut"))


def test_the_shift_aligns_a_target_with_the_position_before_it():
    batch = pad([(np.array([5, 6, 7]), np.array([False, True, True])), (np.array([8, 9]), np.array([False, True]))])
    predicts, targets = shift(batch)
    assert predicts.tolist() == [[True, True, False], [True, False, False]]
    assert targets.tolist() == [6, 7, 9]
    assert batch.num_targets == 3


def test_groups_hold_similar_lengths_within_the_budget():
    assert cut_by_tokens([5, 50, 6, 48, 4], 100) == [[1, 3], [2, 0, 4]]
    assert cut_by_tokens([120, 3], 100) == [[0], [1]]
    assert cut_by_tokens([], 100) == []
    # Padding is avoided where the budget would allow it, but not for nothing.
    assert cut_by_tokens([900, 10, 10], 10**6) == [[0], [1, 2]]
    assert cut_by_tokens([12, 10, 10], 10**6) == [[0, 1, 2]]


@pytest.mark.parametrize(("scale", "budget"), [(60, 400), (600, 3000), (600, 10**6), (600, 1)])
def test_no_other_cut_into_groups_costs_less(scale, budget):
    lengths = np.clip(np.random.default_rng(0).lognormal(0, 1, 9) * scale, 1, None).astype(int)

    def cost(groups):
        return sum(PASS_COST + len(group) * max(lengths[i] for i in group) for group in groups)

    found = cut_by_tokens(lengths, budget)
    assert sorted(i for group in found for i in group) == list(range(9))
    order = sorted(range(9), key=lambda i: -lengths[i])
    others = []
    for places in itertools.product([False, True], repeat=8):  # where a new group begins
        groups = [[order[0]]]
        for i, begins in zip(order[1:], places, strict=True):
            groups = [*groups, [i]] if begins else [*groups[:-1], [*groups[-1], i]]
        if all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= budget for g in groups):
            others.append(cost(groups))
    assert cost(found) == min(others)
