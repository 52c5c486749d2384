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
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from forgetting.errors import UserError
from forgetting.model.backbone import load_backbone, load_configuration, load_tokenizer
from forgetting.model.batch import PASS_COST, batch_by_tokens, pad, shift
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


def causal_lm(configuration: PretrainedConfig, dtype: torch.dtype = torch.float64, std: float = 0.3):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration).to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model


def sequences(vocabulary: int, lengths=(9, 20, 3)):
    generator = np.random.default_rng(0)
    return [(generator.integers(0, vocabulary, n), np.arange(n) >= max(1, n // 2)) for n in lengths]


def test_the_nll_of_the_base_has_no_adapter_and_no_dropout_and_leaves_the_model_as_it_was():
    """A GPT-Neo that drops out in training by itself; in training the adapter is on and drops out, too."""
    configuration = small_configuration("gpt-neo")
    configuration.resid_dropout = 0.5
    batch = pad(sequences(258))
    expected = LanguageModel(causal_lm(configuration))(batch)
    model = LanguageModel(add_lora(causal_lm(configuration), Lora(rank=4, dropout=0.5), seed=0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.train()
    torch.testing.assert_close(model.base_nll(batch), expected)
    assert all(module.training for module in model.modules())
    assert (model(batch) - expected).abs().max() > 0.1  # the control


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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_entropy_is_that_of_the_models_own_logits(family):
    model = causal_lm(FAMILIES[family])
    rows = sequences(FAMILIES[family].vocab_size)
    language_model = LanguageModel(model)
    with torch.no_grad():
        nll, entropy = language_model(pad(rows), entropy=True)
        assert torch.equal(nll, language_model(pad(rows)))
        theirs = []
        for ids, mask in rows:
            logits = model(input_ids=torch.tensor(ids)[None]).logits[0].double()
            theirs.append(torch.special.entr(logits[:-1].softmax(-1)).sum(-1)[torch.tensor(mask)[1:]])
    torch.testing.assert_close(entropy, torch.cat(theirs), rtol=1e-5, atol=1e-5)


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


def test_the_initialization_follows_the_seed_and_leaves_other_draws_alone():
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


TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
LOOKING_AHEAD: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**TINY),
    "roberta": RobertaConfig(**TINY),
    "gemma3 for embeddings": Gemma3TextConfig(**SMALL, query_pre_attn_scalar=8, use_bidirectional_attention=True),
}


@pytest.mark.parametrize("std", [1e-4, 0.02, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", LOOKING_AHEAD)
def test_a_model_that_looks_ahead_is_refused_however_little_it_sees(family, dtype, std):
    model = causal_lm(LOOKING_AHEAD[family], dtype, std)
    with pytest.raises(UserError, match=f"{type(model).__name__} is not causal"):
        LanguageModel(model)


@pytest.mark.parametrize("std", [1e-4, 0.3])
def test_a_head_that_is_more_than_a_layer_is_refused_however_small_its_logits(std):
    decoder = BertConfig(**TINY, is_decoder=True)
    with pytest.raises(UserError, match="does something to its logits"):
        LanguageModel(causal_lm(decoder, std=std))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sets it for GPT-2
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "mistral (sliding window)"])
def test_every_causal_family_is_accepted_and_left_as_it_was(family, dtype, attention):
    more = {
        "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "mistral (sliding window)": MistralConfig(**SMALL, sliding_window=2),
    }
    base = causal_lm({**FAMILIES, **more}[family], dtype)
    if attention == "sdpa" and not base._supports_sdpa:
        pytest.skip("this family has no such attention")
    base.set_attn_implementation(attention)
    full = ["lm_head"] if family == "llama-untied" else None
    for model in (base, add_lora(base, Lora(rank=2, modules_to_save=full), seed=0)):
        for number, module in enumerate(model.modules()):
            module.training = number % 2 == 0
        before = state(model)
        LanguageModel(model)
        assert state(model) == before


def state(model):
    """All that a check might leave behind."""
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return modules, [(p.requires_grad, p.grad is None) for p in model.parameters()], torch.is_grad_enabled()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_called_that(value):
    model = causal_lm(FAMILIES["llama"], torch.float32)
    model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 3] = value
    with pytest.raises(UserError, match="not finite numbers.*damaged"):
        LanguageModel(model)


def test_a_dtype_that_is_too_small_is_called_that():
    model = causal_lm(FAMILIES["llama"], torch.float32)
    model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e7)
    LanguageModel(model)
    with pytest.raises(UserError, match="float16 is too small.*bfloat16"):
        LanguageModel(model.half())


def test_a_family_whose_decoder_is_not_told_from_its_head_is_refused():
    model = causal_lm(FAMILIES["llama"])
    model.base_model_prefix = "elsewhere"
    with pytest.raises(UserError, match="its decoder from its head"):
        LanguageModel(model)


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
    assert batch_by_tokens([5, 50, 6, 48, 4], 100) == [[1, 3], [2, 0, 4]]
    assert batch_by_tokens([120, 3], 100) == [[0], [1]]
    assert batch_by_tokens([], 100) == []
    # Padding is avoided where the budget would allow it, but not for nothing.
    assert batch_by_tokens([900, 10, 10], 10**6) == [[0], [1, 2]]
    assert batch_by_tokens([12, 10, 10], 10**6) == [[0, 1, 2]]


@pytest.mark.parametrize(("scale", "budget"), [(60, 400), (600, 3000), (600, 10**6), (600, 1)])
def test_no_other_cut_into_groups_costs_less(scale, budget):
    lengths = np.clip(np.random.default_rng(0).lognormal(0, 1, 9) * scale, 1, None).astype(int)

    def cost(groups):
        return sum(PASS_COST + len(group) * max(lengths[i] for i in group) for group in groups)

    found = batch_by_tokens(lengths, budget)
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
