"""Responses to the same prompts before and after training: by the base model, and by it with the run's adapter."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from forgetting.corpus.exported_chat import ExportedChat, rendered_ids
from forgetting.corpus.messages import Messages
from forgetting.errors import UserError
from forgetting.model.backbone import Tokenizer
from forgetting.runs.trained import TrainedRun

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Of a response, at most.
        temperature: 0 takes the most likely token; above 0 tokens are drawn from the whole distribution.
        seed: Of the draws. A prompt's depend on it and on the prompt alone, and are the same before and after.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1.")
        if not 0 <= self.temperature < 100:
            raise UserError(f"--temperature is {self.temperature}; it must be 0 (greedy) or above, and below 100.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; it must be 0 or more, and below 2 to the 32.")


@dataclass(frozen=True)
class Response:
    """A response.

    Attributes:
        text: Without the token that ended it.
        is_complete: Whether such a token ended it; else it was cut at its longest.
    """

    text: str
    is_complete: bool


@dataclass(frozen=True)
class Pair:
    """A conversation that ends with the user, and its two responses."""

    messages: Messages
    before: Response
    after: Response

    def record(self) -> dict[str, Any]:
        """A line of the JSONL file."""
        return {
            "messages": self.messages, "before": self.before.text, "after": self.after.text,
            "before_complete": self.before.is_complete, "after_complete": self.after.is_complete,
        }  # fmt: skip


def read_prompts(file: Path) -> list[Messages]:
    """Conversations of a file: JSONL with `prompt` or `messages` in each row, or any text with a prompt per line.

    Raises:
        UserError: Naming the line that is neither.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut at U+2028 in a prompt, too
    except FileNotFoundError:
        raise UserError(f"There is no file {file} of prompts.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8: {error}.") from None
    is_json = file.suffix.lower() in (".jsonl", ".ndjson", ".json")
    prompts = [
        _conversation(line, f"{file}, line {number}") if is_json else user_prompt(line)
        for number, line in enumerate(lines, start=1) if line.strip()
    ]  # fmt: skip
    if not prompts:
        raise UserError(f"{file} holds no prompt.")
    return prompts


def user_prompt(text: str) -> Messages:
    """A conversation of one prompt."""
    return [{"role": "user", "content": text}]


def _conversation(line: str, where: str) -> Messages:
    expected = 'an object with "prompt" (a text), or with "messages" that end with the user\'s, was expected'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): {expected}.") from None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"].strip():
        return user_prompt(row["prompt"])
    messages = row.get("messages") if isinstance(row, dict) else None
    is_conversation = isinstance(messages, list) and all(
        isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in messages
    )
    if not is_conversation or not messages or messages[-1]["role"] != "user":
        raise UserError(f"{where}: {expected}.")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def generate(run: TrainedRun, prompts: Sequence[Messages], sampling: Sampling, device: str) -> Iterator[Pair]:
    """Respond to each prompt with the adapter off and on, one after the other.

    Args:
        run: A finished run.
        prompts: Conversations that end with the user.
        sampling: How tokens are chosen.
        device: Where to compute.

    Raises:
        UserError: A prompt leaves no room for a response (before any is generated).
    """
    tokenizer = run.load_tokenizer()
    chat = run.chat(tokenizer)
    model = run.load_model()
    if not run.four_bit:
        model.to(device)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoded = [rendered_ids(tokenizer, messages, chat.source, generation=True) for messages in prompts]
    for messages, ids in zip(prompts, encoded, strict=True):
        if positions is not None and len(ids) >= positions:
            raise UserError(
                f"The prompt {messages[-1]['content'][:60]!r}… has {len(ids):,} tokens; the model has {positions:,} "
                "positions, so there is no room for a response. Shorten it."
            )
    for messages, ids in zip(prompts, encoded, strict=True):
        longest = sampling.max_new_tokens if positions is None else min(sampling.max_new_tokens, positions - len(ids))
        before, after = (
            _respond(model, tokenizer, chat, ids, longest, sampling, with_adapter) for with_adapter in (False, True)
        )
        yield Pair(messages, before, after)


@torch.no_grad()
def _respond(
    model: PeftModel, tokenizer: Tokenizer, chat: ExportedChat, ids: list[int], longest: int, sampling: Sampling,
    with_adapter: bool,
) -> Response:  # fmt: skip
    ends = _ends(chat, tokenizer)
    greedy = sampling.temperature == 0
    drawn = {} if greedy else {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    base: Any = model.get_base_model()
    base.generation_config = GenerationConfig()  # its own (a temperature, a penalty) would stand in for what is not set
    settings = GenerationConfig(
        max_new_tokens=longest, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0, **drawn
    )
    prompt = torch.tensor([ids], device=model.device)
    with nullcontext() if with_adapter else model.disable_adapter(), torch.random.fork_rng():
        torch.manual_seed(_seed(sampling.seed, ids))
        output = cast(
            Tensor, model.generate(inputs=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        )
    new = output[0, len(ids) :].tolist()
    is_complete = bool(new) and new[-1] in ends
    text = tokenizer.decode(new[:-1] if is_complete else new, skip_special_tokens=False)
    return Response(cast(str, text), is_complete)


def _ends(chat: ExportedChat, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end a response: the template's, and the tokenizer's end of a sequence."""
    ends = (chat.end_id, cast(int | None, tokenizer.eos_token_id))
    return list(dict.fromkeys(end for end in ends if end is not None))


def _seed(seed: int, ids: list[int]) -> int:
    """A seed of a prompt's own, so that its draws do not depend on the prompts before it."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, ids]).encode()).digest()[:7], "big")
