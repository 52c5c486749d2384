"""Small tokenizers of every family, and what the tests of response masks share."""

import json
import re
from functools import cache

import numpy as np
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from forgetting.corpus.encoding import Encoded, Encoder
from forgetting.corpus.messages import Messages
from forgetting.corpus.templates import Template

TEXT = (
    """<|user|>\nName a fish that lives in the sea, please: is it 2 or 3?\n<|assistant|>\nThe cod does. It's 12 kg!
<|system|>\nYou are a helpful assistant.\n\nÉtude für José 你好 😀 don't   stop\nThe answer is yes. **bold** -> no?
""".splitlines(keepends=True)
    * 3
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES = ("gpt2", "trimmed", "llama3", "qwen", "neox", "llama2", "metaspace", "words", "greedy")


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a few lines: the pieces and special tokens of a family, at a small vocabulary."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE(byte_fallback=family in ("llama2", "metaspace"), unk_token=None))
    special, bos, eos, alphabet = ["<s>", "</s>"], "<s>", "</s>", pre_tokenizers.ByteLevel.alphabet()
    tokenizer.decoder = decoders.ByteLevel()
    match family:
        case "gpt2":  # no BOS, one special token
            tokenizer.pre_tokenizer = byte_level
            special, bos, eos = ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>"
        case "trimmed":  # offsets that leave out the space before a word
            tokenizer.pre_tokenizer = byte_level
        case "llama3" | "qwen":
            split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
            special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
            bos, eos = special[:2]
            if family == "qwen":
                tokenizer.normalizer = normalizers.NFC()
                special, bos, eos = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"
        case "neox":  # runs of spaces are added tokens that are not special
            tokenizer.normalizer = normalizers.NFC()
            tokenizer.pre_tokenizer = byte_level
            special, bos, eos = ["<|endoftext|>", "<|padding|>"], "<|endoftext|>", "<|endoftext|>"
        case "llama2":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            alphabet = []
        case "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            alphabet = []
        case "words":
            tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            special = ["<unk>", *special]
        case "greedy":  # merges over anything, newlines included; EOS eats the whitespace after it
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if family == "words":
        trainer: trainers.Trainer = trainers.WordLevelTrainer(special_tokens=special)
    else:
        fallback = [f"<0x{byte:02X}>" for byte in range(256)] if not alphabet else []
        trainer = trainers.BpeTrainer(
            vocab_size=560 if fallback else 420, special_tokens=[*special, *fallback], initial_alphabet=alphabet,
            show_progress=False,
        )  # fmt: skip
    pieces = re.findall(r" ?\S+", "".join(TEXT))  # as sentencepiece: no piece holds a newline
    training = {"greedy": ["".join(TEXT)], "llama2": pieces, "metaspace": pieces}
    tokenizer.train_from_iterator(training.get(family, TEXT), trainer)
    if family in ("llama2", "metaspace"):
        tokenizer = _with_byte_tokens_as_pieces(tokenizer)
    if family == "greedy":
        tokenizer.add_special_tokens([AddedToken("</s>", rstrip=True, normalized=False, special=True)])
    if family == "neox":
        tokenizer.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in (2, 3)])
    if family in ("trimmed", "llama3", "llama2", "metaspace"):
        added = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        trimming = processors.ByteLevel(trim_offsets=True)
        tokenizer.post_processor = processors.Sequence([trimming, added]) if family == "trimmed" else added
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def _with_byte_tokens_as_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """Byte tokens belong to the model, not to the special tokens: as in files made from sentencepiece."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    fallback = [
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ]  # fmt: skip
    made = Tokenizer.from_str(json.dumps(content))
    made.decoder = decoders.Sequence(fallback)
    return made


def encode(
    template: Template, tokenizer: PreTrainedTokenizerFast, messages: Messages, max_length: int = 10_000
) -> Encoded:
    (example,), _ = Encoder(tokenizer, template.adds_bos).encode([template.render(messages)], max_length)
    return example


def dialogue(*contents: str, system: str | None = None) -> Messages:
    roles = ["user", "assistant"] * len(contents)
    start = [] if system is None else [{"role": "system", "content": system}]
    return start + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def runs_of(example: Encoded) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(example.response_mask, prepend=False, append=False))
    return [example.input_ids[start:end].tolist() for start, end in zip(edges[::2], edges[1::2], strict=True)]


CONTENT = st.one_of(
    st.sampled_from(
        ["It's 12 kg!", "Yes", "**bold** no?", "- a\n- b\n\n```py\n  x = 1\n```", "你好 😀", "don't   stop", "3"]
    ),
    st.text(st.sampled_from("aé 你😀\n.-!<|>'12 Tt"), min_size=1).filter(str.strip),
)
