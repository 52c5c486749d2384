"""An adapter's chat template, token by token against the encoding that training uses."""

import re
from pathlib import Path

import pytest
from corpus_tokenizers import CONTENT, FAMILIES, dialogue, encode, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus_templates import CHATS
from transformers import AutoTokenizer

from forgetting.corpus.chat import Chat
from forgetting.corpus.exported_chat import exported_chat, rendered_ids
from forgetting.corpus.templates import template_for

TURNS = st.lists(CONTENT, min_size=1, max_size=5)
SYSTEM = st.none() | CONTENT


def without_controls(messages, tokenizer):
    """Training keeps a control token in a message as text, a chat template reads it: it is not tested here."""
    special = "|".join(map(re.escape, tokenizer.all_special_tokens))
    return [{**m, "content": re.sub(special, "x", m["content"])} for m in messages]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["tulu", "plain"])
@given(contents=TURNS, system=SYSTEM)
@settings(max_examples=30, deadline=None)
def test_renders_the_tokens_of_training(name, family, contents, system):
    tokenizer = tokenizer_of(family)
    chat, template = exported_chat(name, tokenizer), template_for(name, tokenizer)
    messages = without_controls(dialogue(*contents, system=system), tokenizer)
    assert chat.is_exact
    assert rendered_ids(tokenizer, messages, chat.source) == encode(template, tokenizer, messages).input_ids.tolist()


@pytest.mark.parametrize("name", CHATS)
@given(contents=TURNS.filter(lambda contents: len(contents) % 2 == 0))
@settings(max_examples=30, deadline=None)
def test_the_tokenizers_own_template_is_kept(name, contents):
    tokenizer = CHATS[name]
    chat, messages = exported_chat("chat", tokenizer), without_controls(dialogue(*contents), tokenizer)
    expected = encode(Chat(tokenizer), tokenizer, messages).input_ids.tolist()
    assert chat.is_exact
    assert rendered_ids(tokenizer, messages, chat.source) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["tulu", "plain"])
@given(contents=TURNS.filter(lambda contents: len(contents) % 2 == 1), system=SYSTEM)
@settings(max_examples=20, deadline=None)
def test_the_generation_prompt_is_what_precedes_the_response(name, family, contents, system):
    tokenizer = tokenizer_of(family)
    source = exported_chat(name, tokenizer).source
    messages = without_controls(dialogue(*contents, "It is 3.", system=system), tokenizer)

    def text(turns, generation):
        return tokenizer.apply_chat_template(
            turns, chat_template=source, add_generation_prompt=generation, tokenize=False
        )

    whole, prompt = text(messages, False), text(messages[:-1], True)
    assert whole == prompt + "It is 3." + tokenizer.eos_token
    ids, before = rendered_ids(tokenizer, messages, source), rendered_ids(tokenizer, messages[:-1], source, True)
    if family not in ("greedy", "words"):  # their tokens may reach over a line's end
        assert ids[: len(before)] == before


@pytest.mark.parametrize("family", ["llama3", "metaspace"])
def test_a_saved_tokenizer_renders_the_same(family, tmp_path: Path):
    tokenizer, messages = tokenizer_of(family), dialogue("What is 2?", "Two.", "And 3?", "Three.", system="Be brief.")
    expected = encode(template_for("tulu", tokenizer), tokenizer, messages).input_ids.tolist()
    saved = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token=tokenizer.eos_token
    )
    saved.chat_template = exported_chat("tulu", tokenizer).source
    saved.save_pretrained(tmp_path)
    assert rendered_ids(AutoTokenizer.from_pretrained(tmp_path), messages) == expected


def test_a_text_that_begins_otherwise_after_bos_needs_the_space():
    """The control: without the space that the template of this family writes, the first token is another one."""
    tokenizer, messages = tokenizer_of("metaspace"), dialogue("What?", "It.")
    source = exported_chat("tulu", tokenizer).source
    expected = encode(template_for("tulu", tokenizer), tokenizer, messages).input_ids.tolist()
    assert rendered_ids(tokenizer, messages, source) == expected
    assert rendered_ids(tokenizer, messages, source.replace('"<s> "', '"<s>"')) != expected


@pytest.mark.parametrize(("name", "end"), [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("llama2", "</s>")])
def test_generation_ends_at_the_token_that_ends_a_response(name, end):
    assert exported_chat("chat", CHATS[name]).end_id == CHATS[name].convert_tokens_to_ids(end)
    assert exported_chat("tulu", CHATS[name]).end_id == CHATS[name].eos_token_id
