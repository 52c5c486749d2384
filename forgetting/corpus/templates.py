"""Messages → text in segments: which characters are targets, and which strings are control tokens.

A control token (EOS, a chat template's markers) is a segment of its own, so that the same string inside a message stays
ordinary text: data cannot write a control token, and so cannot end a response. A header that a template writes as
ordinary text (all of tulu's, `[/INST]` in Llama 2's chat template) is another matter: the same text inside a message
gives the same tokens, as in published code, so that data can forge it. Such rows are counted.
"""

from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from forgetting.corpus.chat import Chat
from forgetting.corpus.encoding import Segment
from forgetting.corpus.messages import Messages
from forgetting.errors import UserError

TEMPLATES = ("tulu", "chat", "plain")


@runtime_checkable
class Template(Protocol):
    """Writer of messages as text."""

    identity: dict[str, Any]
    adds_bos: bool

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation, whose texts in order are the whole."""
        ...

    def has_forged_header(self, messages: Messages) -> bool:
        """Return whether a message holds a header that this template writes as ordinary text."""
        ...


def template_for(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """A template by its name: tulu, chat or plain.

    Raises:
        UserError: There is no such template, or the tokenizer lacks what it needs.
    """
    match name:
        case "tulu":
            return Tulu(eos_of(tokenizer, name))
        case "plain":
            return Plain(eos_of(tokenizer, name))
        case "chat":
            return Chat(tokenizer)
        case _:
            raise UserError(f"There is no template {name!r}; data.template is one of {', '.join(TEMPLATES)}.")


def eos_of(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The tokenizer's EOS, which ends every response.

    Raises:
        UserError: It has none.
    """
    if tokenizer.eos_token is None:
        raise UserError(
            f"The template {name} ends every response with EOS, but the tokenizer ({tokenizer.name_or_path}) has no "
            "eos_token. Set it in its tokenizer_config.json."
        )
    return str(tokenizer.eos_token)


class Tulu:
    r"""The published code's plain-text format.

    `<|system|>\n{s}\n`, `<|user|>\n{x}\n`, `<|assistant|>\n{y}{eos}\n`: contents stripped, the whole stripped at its
    end. Targets are assistant contents, EOS, and the newline after an EOS that is not the end.
    """

    adds_bos = True

    def __init__(self, eos: str) -> None:
        self.eos = eos
        self.identity: dict[str, Any] = {"name": "tulu", "version": 1, "eos": eos}

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation."""
        segments: list[Segment] = []
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"].strip()
            if role == "assistant":
                segments += [
                    Segment("<|assistant|>\n", False),
                    Segment(content, True, origin=_origin(messages, i)),
                    Segment(self.eos, True, is_control=True),
                    Segment("\n", True),
                ]
            else:
                segments.append(Segment(f"<|{role}|>\n{content}\n", False))
        last = segments.pop()
        return segments if messages[-1]["role"] == "assistant" else [*segments, Segment(last.text.rstrip(), False)]

    def has_forged_header(self, messages: Messages) -> bool:
        """Return whether a message holds `<|system|>`, `<|user|>` or `<|assistant|>` at the end of a line."""
        for message in messages:
            content = message["content"].strip() + ("" if message["role"] == "assistant" else "\n")
            if any(f"<|{role}|>\n" in content for role in ("system", "user", "assistant")):
                return True
        return False


class Plain:
    """Prompt, newline, completion, EOS; a dialogue is one such pair after the other.

    There are no headers: EOS ends a completion, and nothing but the newline tells a prompt from what precedes it.
    """

    adds_bos = True

    def __init__(self, eos: str) -> None:
        self.eos = eos
        self.identity: dict[str, Any] = {"name": "plain", "version": 1, "eos": eos}

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation."""
        segments: list[Segment] = []
        for i, message in enumerate(messages):
            content = message["content"].strip()
            if message["role"] == "assistant":
                segments += [
                    Segment(content, True, origin=_origin(messages, i)),
                    Segment(self.eos, True, is_control=True),
                ]
            else:
                segments.append(Segment(f"{content}\n", False))
        return segments

    def has_forged_header(self, messages: Messages) -> bool:
        """Return False: there are no headers."""
        return False


def _origin(messages: Messages, i: int) -> int | None:
    """Place in message `i` at which its stripped text begins, where it is the last message."""
    content = messages[i]["content"]
    return len(content) - len(content.lstrip()) if i == len(messages) - 1 else None
