"""Known noise from a column of a file to a code per response token."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_tokenizers import CONTENT, dialogue, tokenizer_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_corpus_templates import CHATS
from transformers import PreTrainedTokenizerFast

from forgetting.corpus.chat import Chat
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.encoding import Encoder, Segment
from forgetting.corpus.messages import Messages
from forgetting.corpus.noise import NoiseSpan, mark_noise, read_spans
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.corpus.templates import Template, Tulu, template_for
from forgetting.corpus.tokens import TokenizedCorpus, TokenizedSplit, tokenize_corpus
from forgetting.errors import UserError

KINDS = ["typo", "wrong"]
FAMILIES = ("gpt2", "llama3", "qwen", "neox", "llama2", "metaspace", "words", "greedy")


@st.composite
def responses(draw: st.DrawFn) -> tuple[str, list[NoiseSpan]]:
    """A response with whitespace around it, and disjoint spans of two kinds anywhere in it."""
    text = draw(st.sampled_from(["", " ", "\n ", "  "])) + draw(CONTENT) + draw(st.sampled_from(["", " ", " \n"]))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    ranges = zip(cuts[::2], cuts[1::2], strict=False)
    return text, [NoiseSpan(start, end, draw(st.sampled_from(KINDS))) for start, end in ranges]


def expected_codes(
    tokenizer: PreTrainedTokenizerFast, text: str, start: int, response: str, written: str, spans: list[NoiseSpan]
) -> list[int]:
    """Codes of a text's tokens, character by character, where the `written` part of the response begins at `start`."""
    of_character = dict.fromkeys(range(len(text)), 0)
    origin = response.index(written)
    for span in spans:
        for place in range(max(span.start, origin), min(span.end, origin + len(written))):
            of_character[place - origin + start] = 1 + KINDS.index(span.kind)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return [
        next((of_character[place] for place in range(first, last) if of_character[place]), 0)
        for first, last in encoded["offset_mapping"]
    ]


def codes_of(
    template: Template, tokenizer: PreTrainedTokenizerFast, messages: Messages, spans: list[NoiseSpan]
) -> tuple[list[int], list[bool], list[int]]:
    """Ids, mask and codes without the tokenizer's BOS, the codes of targets alone."""
    segments = mark_noise(template.render(messages), messages[-1]["content"], spans, KINDS)
    encoder = Encoder(tokenizer, False)
    ((plain,), _), ((example,), _) = (encoder.encode([s], 10_000) for s in (template.render(messages), segments))
    assert example.input_ids.tolist() == plain.input_ids.tolist()  # noise changes nothing else
    assert example.response_mask.tolist() == plain.response_mask.tolist()
    assert not plain.noise.any()
    return example.input_ids.tolist(), example.response_mask.tolist(), example.noise.tolist()


def assert_codes(
    template: Template, tokenizer: PreTrainedTokenizerFast, messages: Messages, spans: list[NoiseSpan], text: str,
    start: int, written: str,
) -> None:  # fmt: skip
    ids, mask, codes = codes_of(template, tokenizer, messages, spans)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = expected_codes(tokenizer, text, start, messages[-1]["content"], written, spans)
    assert [code for code, is_target in zip(codes, mask, strict=True) if is_target] == [
        code for code, is_target in zip(expected, mask, strict=True) if is_target
    ]
    if mask[-1] and ids[-1] in tokenizer.all_special_ids:
        assert codes[-1] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["tulu", "plain"])
@given(question=CONTENT, response=responses(), history=st.booleans())
@settings(max_examples=60, deadline=None)
def test_tokens_are_noise_where_their_characters_are(
    family: str, name: str, question: str, response: tuple[str, list[NoiseSpan]], history: bool
) -> None:
    tokenizer = tokenizer_of(family)
    content, spans = response
    eos = str(tokenizer.eos_token)
    assume(not any(special in question + content for special in tokenizer.all_special_tokens))
    earlier = ["Name a fish", content] if history else []
    messages = dialogue(*earlier, question, content)
    template = template_for(name, tokenizer)
    if name == "tulu":
        before = f"<|user|>\nName a fish\n<|assistant|>\n{content.strip()}{eos}\n" if history else ""
        before += f"<|user|>\n{question.strip()}\n<|assistant|>\n"
    else:
        before = f"Name a fish\n{content.strip()}{eos}" if history else ""
        before += f"{question.strip()}\n"
    text = before + content.strip() + eos
    assert_codes(template, tokenizer, messages, spans, text, len(before), content.strip())


@pytest.mark.parametrize("name", CHATS)
@given(question=CONTENT, response=responses())
@settings(max_examples=60, deadline=None)
def test_tokens_of_a_chat_are_noise_where_their_characters_are(
    name: str, question: str, response: tuple[str, list[NoiseSpan]]
) -> None:
    tokenizer, (content, spans) = CHATS[name], response
    messages = dialogue(question, content)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    before = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    before += {"marked": "<|im_start|>assistant\n", "llama2": " "}.get(name, "")
    assert text.startswith(before)
    written = content if name in ("chatml", "marked") else content.strip()
    assert_codes(Chat(tokenizer), tokenizer, messages, spans, text, len(before), written)


def test_control_strings_in_a_response_shift_no_span() -> None:
    tokenizer = CHATS["chatml"]
    content = "x<|im_end|> \ue000 <|im_start|>bad good"
    start = content.index("bad")
    ids, mask, codes = codes_of(
        Chat(tokenizer), tokenizer, dialogue("q", content), [NoiseSpan(start, start + 3, "typo")]
    )
    noisy = [token for token, code in zip(ids, codes, strict=True) if code]
    assert tokenizer.decode(noisy) == "bad"
    assert all(is_target for is_target, code in zip(mask, codes, strict=True) if code)


def test_a_token_with_two_kinds_has_the_first_and_eos_none() -> None:
    tokenizer = tokenizer_of("words")
    template = Tulu(str(tokenizer.eos_token))
    spans = [NoiseSpan(4, 5, "wrong"), NoiseSpan(5, 7, "typo")]
    _, mask, codes = codes_of(template, tokenizer, dialogue("q", "The cod does."), spans)
    assert [code for code, is_target in zip(codes, mask, strict=True) if is_target] == [0, 2, 0, 0]


AMBIGUOUS = CHATS["marked"].chat_template.replace("{{ m.content + ", "{{ 'A: ' + m.content + ")


def test_a_template_that_hides_the_response_is_refused() -> None:
    tokenizer = CHATS["marked"]
    spans = [NoiseSpan(0, 1, "typo")]
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = AMBIGUOUS
        _, _, codes = codes_of(Chat(tokenizer), tokenizer, dialogue("q", "no"), spans)  # control
        assert sum(codes) == 1
        with pytest.raises(UserError, match="does not say where it writes the response"):
            codes_of(Chat(tokenizer), tokenizer, dialogue("q", "A"), spans)
    finally:
        tokenizer.chat_template = before
    with pytest.raises(UserError, match="says that 'abc' are the characters from 1 of the response, but .* 'bcd'"):
        mark_noise([Segment("abc", True, origin=1)], "abcd", spans, KINDS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"noise is None; expected a list of \[start, end, kind\]"),
        ("[[0, 1, 'a']]", "expected a list"),
        ({"start": 0}, "expected a list"),
        ([3], "span 3 is not"),
        ([[0, 1]], "is not .start, end, kind"),
        ([[0, 1.0, "a"]], "is not .start, end, kind"),
        ([[True, 2, "a"]], "is not .start, end, kind"),
        ([[0, 1, 5]], "two whole numbers and a text"),
        ([[0, 1, None]], "two whole numbers and a text"),
        ([[1, 1, "a"]], "is empty or not within the response, which has 4 characters"),
        ([[2, 1, "a"]], "is empty or not within"),
        ([[-1, 1, "a"]], "is empty or not within"),
        ([[0, 5, "a"]], "is empty or not within"),
        ([[0, 1, " "]], "has no kind"),
        ([[0, 1, "\ud800"]], "has no kind"),
        ([[2, 4, "a"], [0, 3, "b"]], r"spans \[0, 3, 'b'\] and \[2, 4, 'a'\] overlap"),
        ([[0, 1, "a"], [0, 1, "a"]], "overlap"),
    ],
)
def test_other_values_than_spans_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"Source 'S', row 7: .*{message}"):
        read_spans(value, "four", "Source 'S', row 7")
    rows = [{"q": "x", "a": "four", "noise": []}, {"q": "y", "a": "four", "noise": value}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=rf"Source 'made', row 1: .*{message}"):
        prepared(tmp_path, Source(str(tmp_path / "x.json"), prompt="{q}", response="{a}", noise="noise"), 1)


def test_spans_are_taken_in_any_order_and_may_touch() -> None:
    spans = read_spans([[2, 4, "b"], [0, 2, "a"]], "four", "here")
    assert spans == (NoiseSpan(0, 2, "a"), NoiseSpan(2, 4, "b"))


def test_noise_of_a_tree_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="a tree has several"):
        Source("absent.jsonl", name="S", noise="noise", tree="prompt").check()


@pytest.mark.parametrize(
    ("mapping", "role", "content"), [("messages", "role", "content"), ("conversations", "from", "value")]
)
def test_noise_of_a_conversation_is_in_its_last_response(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, mapping: str, role: str, content: str
) -> None:
    said = [("user", "Two?"), ("assistant", "Four"), ("user", "And three?"), ("assistant", "Fine")]
    turns = [{role: who, content: text} for who, text in said]
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"turns": turns, "noise": [[1, 3, "wrong"]]}) + "\n")
    corpus = prepared(tmp_path, Source(str(file), noise="noise", **{mapping: "turns"}), 1)
    split = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("train")
    assert noisy_texts(split, tiny_tokenizer, 1) == ["in"]  # and not "ou", of the first response
    file.write_text(json.dumps({"turns": [*turns, {role: "user", content: "Ah"}], "noise": [[0, 1, "x"]]}) + "\n")
    with pytest.raises(UserError, match="the last message is the user's"):
        prepared(tmp_path, Source(str(file), noise="noise", **{mapping: "turns"}), 1)


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "x", "a": "y"}\n')
    with pytest.raises(UserError, match="has no column 'noise'"):
        prepared(tmp_path, Source(str(tmp_path / "x.jsonl"), prompt="{q}", response="{a}", noise="noise"), 1)


def test_more_kinds_than_a_byte_holds_are_refused(tmp_path: Path) -> None:
    rows = [{"q": f"{i}", "a": "four", "noise": [[0, 1, f"kind {i}"]]} for i in range(256)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    source = Source(str(tmp_path / "x.json"), prompt="{q}", response="{a}", noise="noise")
    with pytest.raises(UserError, match="name 256 kinds of noise .*; expected at most 255"):
        prepared(tmp_path, source, 256)
    assert len(prepared(tmp_path, source, 255).manifest["noise_kinds"]) == 255


def prepared(folder: Path, source: Source, num_train: int, **settings: Any) -> Corpus:
    return prepare_corpus(CorpusConfig({"made": source}, num_train, 0, 0, **settings), folder / "corpora")


def rows_with_noise() -> list[dict[str, Any]]:
    """Forty rows: words that end in `!` are noise, of two kinds."""
    rows: list[dict[str, Any]] = []
    for i in range(40):
        words = [f"w{i}", "x!", "y", "é😀!", f"{i}!"][: 2 + i % 4]
        response = "  " + " ".join(words)
        noise = [
            [response.index(word), response.index(word) + len(word), "bang" if word == "x!" else "any"]
            for word in words
            if word.endswith("!")
        ]
        rows.append({"q": f"question {i}", "a": response, "noise": noise})
    return rows


def source_of(folder: Path, rows: list[dict[str, Any]], **mapping: Any) -> Source:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(folder / "x.jsonl"), prompt="{q}", response="{a}", **mapping)


def noisy_texts(split: TokenizedSplit, tokenizer: PreTrainedTokenizerFast, kind: int) -> list[str]:
    """Text of the tokens of a kind in each example."""
    assert split.noise is not None
    texts, start = [], 0
    for i in range(len(split)):
        targets = split.input_ids(i)[split.response_mask(i)]
        codes = split.noise[start : start + len(targets)]
        texts.append(tokenizer.decode(targets[codes == kind]))
        start += len(targets)
    assert start == len(split.noise)
    return texts


def test_noise_goes_with_its_row_to_the_tokens(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = rows_with_noise()
    corpus = prepared(tmp_path, source_of(tmp_path, rows, noise="noise", size=39), 30)
    assert corpus.manifest["noise_kinds"] == ["any", "bang"]
    tokens = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048)
    assert tokens.noise_kinds == ("any", "bang")
    split = tokens.split("train")
    assert split.noise is not None
    assert (split.noise.dtype, len(split.noise)) == (np.uint8, split.num_targets.sum())
    origins = [rows[row]["a"].split() for row in corpus.split("train")["source_row"]]
    assert noisy_texts(split, tiny_tokenizer, 2) == ["x!" if "x!" in words else "" for words in origins]
    others = ["".join(word for word in words if word.endswith("!") and word != "x!") for words in origins]
    assert noisy_texts(split, tiny_tokenizer, 1) == others
    validation = tokens.split("validation").noise
    assert validation is not None
    assert len(validation) == 0
    received = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert (received.noise == split.noise).all()


def test_noise_changes_no_other_byte(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows, made = rows_with_noise(), []
    for number, mapping in enumerate(({}, {"noise": "noise"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        corpus = prepared(folder, source_of(folder, rows, **mapping), 30)
        made.append((corpus, tokenize_corpus(corpus, tiny_tokenizer, "plain", 2048)))
    (without, plain), (known, noisy) = made
    assert without.content_hash == known.content_hash
    assert plain.content_hash == noisy.content_hash
    assert without.folder.name != known.folder.name
    assert plain.split("train").noise is None
    assert plain.noise_kinds == ()
    files = [sorted(path.name for path in (tokens.folder / "train").iterdir()) for _, tokens in made]
    assert files[1] == sorted([*files[0], "noise.npy"])
    for name in files[0]:
        assert (plain.folder / "train" / name).read_bytes() == (noisy.folder / "train" / name).read_bytes()


def test_cut_and_dropped_examples_keep_noise_in_step(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = rows_with_noise()
    rows[3]["q"] = "long " * 20
    corpus = prepared(tmp_path, source_of(tmp_path, rows, noise="noise"), 40)
    whole = tokenize_corpus(corpus, tiny_tokenizer, "plain", 2048).split("train")
    cut = tokenize_corpus(corpus, tiny_tokenizer, "plain", 20).split("train")
    assert len(cut) == 39  # control: one has no response token left
    assert whole.noise is not None
    assert cut.noise is not None
    pieces = np.split(whole.noise, np.cumsum(whole.num_targets)[:-1])
    expected = [pieces[row][:num] for row, num in zip(cut.rows, cut.num_targets, strict=True)]
    assert cut.noise.tolist() == np.concatenate(expected).tolist()
    assert cut.num_targets.sum() < whole.num_targets.sum() - whole.num_targets[3]  # control: others are cut


def test_a_duplicate_has_the_noise_of_the_first(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "one  two", "noise": [[5, 8, "a"]]}, {"q": "x", "a": "one two", "noise": [[0, 3, "b"]]}]
    train = prepared(tmp_path, source_of(tmp_path, rows, noise="noise"), 1).split("train")
    assert (train[0]["source_row"], train[0]["noise"]) == (0, [{"start": 5, "end": 8, "kind": "a"}])


def test_each_duplicate_of_a_reference_has_its_own(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "one", "noise": []}, *({"q": "y", "a": "two", "noise": [[i, i + 1, "k"]]} for i in (0, 1))]
    source = source_of(tmp_path, rows, noise="noise")
    config = CorpusConfig({"S": source}, 0, 3, 0, deduplicate_reference=False)
    config.num_train = 1
    config.num_reference = 1
    corpus = prepare_corpus(config, tmp_path / "corpora")
    (row,) = corpus.split("reference")
    assert row["noise"] == [{"start": s, "end": e, "kind": k} for s, e, k in rows[row["source_row"]]["noise"]]


def test_clean_rows_of_a_source_that_knows_are_an_array_of_zeros(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = prepared(tmp_path, source_of(tmp_path, [{"q": "x", "a": "y", "noise": []}], noise="noise"), 1)
    assert corpus.manifest["noise_kinds"] == []
    noise = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 64).split("train").noise
    assert noise is not None
    assert noise.tolist() == [0, 0]


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_noise_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, damage: str) -> None:
    corpus = prepared(tmp_path, source_of(tmp_path, rows_with_noise(), noise="noise"), 30)
    tokens = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 64)
    file = tokens.folder / "train/noise.npy"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"train/noise.npy .* Remove it \(rm -r"):
        TokenizedCorpus(tokens.folder)


def test_parquet_cannot_hold_spans_as_they_are(tmp_path: Path) -> None:
    table = pa.table({"q": ["x"], "a": ["four"], "noise": [[{"start": 0, "end": 1, "kind": "a"}]]})
    pq.write_table(table, tmp_path / "x.parquet")
    source = Source(str(tmp_path / "x.parquet"), prompt="{q}", response="{a}", noise="noise")
    with pytest.raises(UserError, match="Source 'made', row 0: the noise span"):
        prepared(tmp_path, source, 1)
