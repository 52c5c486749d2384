"""Response masks on small tokenizers of every family, against an independent computation and by decoding."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from corpus_tokenizers import CONTENT, FAMILIES, dialogue, encode, runs_of, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from forgetting.corpus.encoding import Encoder, Segment, bos_ids, tokenizer_hash
from forgetting.corpus.messages import Messages
from forgetting.corpus.templates import Plain, Tulu, template_for
from forgetting.errors import UserError


def published_text(messages: Messages, eos: str) -> str:
    """The published code's text: every message with its header, EOS after an assistant's."""
    lines = []
    for message in messages:
        end = eos if message["role"] == "assistant" else ""
        lines.append(f"<|{message['role']}|>\n{message['content'].strip()}{end}\n")
    return "".join(lines)


def published_mask(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> tuple[list[int], list[bool]] | None:
    """Its labels, by lengths of encoded prefixes; None where a prefix's tokens do not begin the whole's."""
    eos = str(tokenizer.eos_token)
    ids = tokenizer(published_text(messages, eos).strip())["input_ids"]
    mask = [True] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        before = published_text(messages[:i], eos)
        until = published_text(messages[: i + 1], eos)
        if i + 1 < len(messages) and messages[i + 1]["role"] == "assistant":
            until += "<|assistant|>\n"
        if i + 1 == len(messages):
            until = until.strip()  # as the whole is: a merge over its last newline would not be in the whole
        start = len(tokenizer(before)["input_ids"]) if i else 0
        found = tokenizer(until)["input_ids"]
        if ids[: len(found)] != found:
            return None
        mask[start : len(found)] = [False] * (len(found) - start)
    mask[0] = False
    return ids, mask[: len(ids)]


DIALOGUES = st.builds(
    lambda turns, system, extra: dialogue(*(part for turn in turns for part in turn), *extra, system=system),
    st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3),
    st.none() | CONTENT,
    st.lists(CONTENT, max_size=1),  # a last question nobody answered
)


@pytest.mark.parametrize("family", FAMILIES)
@given(messages=DIALOGUES)
@settings(max_examples=60, deadline=None)
def test_tulu_equals_the_published_text_and_labels(family: str, messages: Messages) -> None:
    tokenizer = tokenizer_of(family)
    example = encode(Tulu(str(tokenizer.eos_token)), tokenizer, messages)
    whole = tokenizer(published_text(messages, str(tokenizer.eos_token)).strip())["input_ids"]
    assert example.input_ids.tolist() == whole
    published = published_mask(tokenizer, messages)
    if published is not None:
        assert example.response_mask.tolist() == published[1]
    else:
        assert family == "greedy"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("words", "greedy")])
@pytest.mark.parametrize("name", ["tulu", "plain"])
@given(messages=DIALOGUES)
@settings(max_examples=40, deadline=None)
def test_targets_decode_to_the_responses(family: str, name: str, messages: Messages) -> None:
    tokenizer = tokenizer_of(family)
    example = encode(template_for(name, tokenizer), tokenizer, messages)
    found = [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs_of(example)]
    wanted = [m["content"].strip() + str(tokenizer.eos_token) for m in messages if m["role"] == "assistant"]
    between = {"tulu": "\n", "plain": ""}[name]
    last_is_answer = messages[-1]["role"] == "assistant"
    wanted = [text + ("" if last_is_answer and i == len(wanted) - 1 else between) for i, text in enumerate(wanted)]
    if family in ("llama2", "metaspace"):  # their decoders write the piece after EOS with its space
        found = [text.replace("</s> \n", "</s>\n") for text in found]
    if tokenizer.backend_tokenizer.normalizer is not None and family in ("qwen", "neox"):
        wanted = [unicodedata.normalize("NFC", text) for text in wanted]
    assert found == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_control_strings_in_the_data_stay_text(family: str) -> None:
    tokenizer = tokenizer_of(family)
    controls = [*map(str, tokenizer.all_special_tokens)]
    evil = "".join(controls) + " forged " + " ".join(reversed(controls))
    template = Tulu(str(tokenizer.eos_token))
    example = encode(template, tokenizer, dialogue(evil, evil, "go on", "yes"))
    eos = tokenizer.eos_token_id
    assert (example.input_ids == eos).sum() == 2 + (tokenizer.bos_token_id == eos) * len(bos_ids(tokenizer))
    assert set(example.input_ids.tolist()) & set(tokenizer.all_special_ids) <= {
        eos,
        *bos_ids(tokenizer),
        tokenizer.unk_token_id,
    }
    if family != "words":
        text = tokenizer.decode(example.input_ids[len(bos_ids(tokenizer)) :], clean_up_tokenization_spaces=False)
        assert text.count(evil) == 2
        # Control: the tokenizer itself would have made control tokens of them.
        naive = tokenizer(published_text(dialogue(evil, evil, "go on", "yes"), str(tokenizer.eos_token)).strip())[
            "input_ids"
        ]
        assert sum(token == eos for token in naive) > 2


def test_markers_in_the_data_are_harmless() -> None:
    tokenizer = tokenizer_of("gpt2")
    template = Tulu("<|endoftext|>")
    for nasty in ("\ue0020\ue003", "\ue0020\ue0030\ue004", "\ue0020\ue003 \ue0021\ue003", "\ue0000\ue001"):
        example = encode(template, tokenizer, dialogue("q", nasty))
        assert tokenizer.decode(runs_of(example)[0]) == nasty + "<|endoftext|>"
        assert (example.input_ids == tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_position_0_is_never_a_target(family: str) -> None:
    tokenizer = tokenizer_of(family)
    example = encode(Plain(str(tokenizer.eos_token)), tokenizer, [{"role": "assistant", "content": "Yes no"}])
    assert not example.response_mask[0]
    assert example.response_mask[1:].sum() == len(example.input_ids) - max(1, len(bos_ids(tokenizer)))


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_cuts_ids_and_mask_alike(family: str) -> None:
    tokenizer = tokenizer_of(family)
    template = Tulu(str(tokenizer.eos_token))
    messages = dialogue("Name a fish", "The cod does.", "more", "no 你好")
    whole = encode(template, tokenizer, messages)
    for length in range(1, len(whole.input_ids) + 3):
        cut = encode(template, tokenizer, messages, length)
        assert cut.input_ids.tolist() == whole.input_ids[:length].tolist()
        assert cut.response_mask.tolist() == whole.response_mask[:length].tolist()
    _, (length,) = Encoder(tokenizer, True).encode([template.render(messages)], 3)
    assert length == len(whole.input_ids)


def test_bos_is_the_tokenizers_own() -> None:
    added = {family: bos_ids(tokenizer_of(family)) for family in FAMILIES}
    with_bos = {family for family, ids in added.items() if ids}
    assert with_bos == {"trimmed", "llama3", "llama2", "metaspace"}
    for family in with_bos:
        tokenizer = tokenizer_of(family)
        example = encode(Tulu(str(tokenizer.eos_token)), tokenizer, dialogue("q", "a"))
        assert (example.input_ids == tokenizer.bos_token_id).sum() == 1
        assert example.input_ids[0] == tokenizer.bos_token_id


def test_a_token_over_a_boundary_counts_where_it_begins() -> None:
    tokenizer = tokenizer_of("greedy")
    (example,), _ = Encoder(tokenizer, True).encode([[Segment("The an", False), Segment("swer is yes.", True)]], 100)
    pieces = [tokenizer.decode([token]) for token in example.input_ids]
    ends = np.cumsum([0, *map(len, pieces)])
    crossing = [i for i, (start, end) in enumerate(pairwise(ends)) if start < 6 < end]
    assert len(crossing) == 1  # control: there is such a token
    assert not example.response_mask[crossing[0]]
    assert example.response_mask.tolist() == [bool(start >= 6) for start in ends[:-1]]


def test_words_and_plain_suit_a_generated_world() -> None:
    tokenizer = tokenizer_of("words")
    example = encode(Plain("</s>"), tokenizer, dialogue("Name a fish", "The cod", "is it", "no?"))
    pieces = tokenizer.convert_ids_to_tokens(example.input_ids.tolist())
    assert pieces == ["Name", "a", "fish", "The", "cod", "</s>", "is", "it", "no?", "</s>"]
    assert example.response_mask.tolist() == [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2


def test_the_hash_follows_behavior_and_not_padding() -> None:
    tokenizer = tokenizer_of("gpt2")
    before = tokenizer_hash(tokenizer)
    tokenizer_of.cache_clear()
    again = tokenizer_of("gpt2")
    again.pad_token = again.eos_token
    again(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(again) == before
    hashes = {tokenizer_hash(tokenizer_of(family)) for family in FAMILIES}
    assert len(hashes) == len(FAMILIES)
    again.chat_template = "{{ messages }}"
    assert tokenizer_hash(again) != before


def test_batches_give_what_single_examples_give() -> None:
    tokenizer = tokenizer_of("llama3")
    template = Tulu(str(tokenizer.eos_token))
    conversations = [dialogue("q", "a"), dialogue("Name a fish", "The cod.", "no?", "yes"), dialogue("x", "你好")]
    together, lengths = Encoder(tokenizer, True).encode([template.render(c) for c in conversations], 100)
    for messages, example, length in zip(conversations, together, lengths, strict=True):
        alone = encode(template, tokenizer, messages)
        assert alone.input_ids.tolist() == example.input_ids.tolist()
        assert alone.response_mask.tolist() == example.response_mask.tolist()
        assert length == len(alone.input_ids)


def test_a_vocabulary_with_gaps() -> None:
    words = {"<unk>": 0, "</s>": 1, "a": 2, "b": 4, "q": 6, "<|user|>": 8, "<|assistant|>": 5}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="<unk>")
    example = encode(Tulu("</s>"), tokenizer, dialogue("q", "a b"))
    assert example.input_ids.tolist() == [8, 6, 5, 2, 4, 1]
    assert example.response_mask.tolist() == [False] * 3 + [True] * 3


def test_a_control_token_that_cannot_be_written_otherwise() -> None:
    model = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="</s>")
    with pytest.raises(UserError, match="writes the text '</s>' in the data as a control token"):
        encode(Plain("</s>"), tokenizer, dialogue("a", "a </s> a"))


def test_a_unigram_model_that_holds_the_control_token_as_a_piece() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), *((letter, -4.0) for letter in "abq</s>|\n")]
    model = Tokenizer(models.Unigram(pieces, unk_id=0))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="<unk>")
    assert model.encode("a</s>", add_special_tokens=False).ids.count(1) == 1  # control: eos_token is one of its pieces
    example = encode(Plain("</s>"), tokenizer, dialogue("q</s>", "a</s>b"))
    assert example.input_ids.tolist().count(1) == 1
    assert example.input_ids[-1] == 1


class Slow(PreTrainedTokenizer):
    def get_vocab(self) -> dict[str, int]:
        return {}


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="without character offsets"):
        tokenizer_hash(Slow())
