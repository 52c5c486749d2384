"""Messages → text in segments: which characters are targets, and which strings are control tokens.

A control token (EOS, a chat template's markers) is a segment of its own, so that the same string inside a message stays
ordinary text: data cannot write a control token, and so cannot end a response. A header that a template writes as
ordinary text (all of tulu's, `[/INST]` in Llama 2's chat template) is another matter: the same text inside a message
gives the same tokens, as in published code, so that data can forge it. Such rows are counted.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from forgetting.corpus.messages import Messages
from forgetting.errors import UserError

TEMPLATES = ("tulu", "chat", "plain")
ESCAPE = "\ue000"
ESCAPED = re.compile("\ue000([0-9]+)\ue001")
PROBE = "\ue005"  # a message's whole content, to see what the template writes around it
DATE = {"%d": "26", "%m": "07", "%Y": "2024", "%y": "24", "%b": "Jul", "%B": "July", "%A": "Friday", "%a": "Fri"}


@dataclass(frozen=True)
class Segment:
    """A piece of text: whether it is learned, and whether it is one control token."""

    text: str
    is_target: bool
    is_control: bool = False


@runtime_checkable
class Template(Protocol):
    """How messages become text."""

    identity: dict[str, Any]
    adds_bos: bool

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation, whose texts in order are the whole."""
        ...

    def has_forged_header(self, messages: Messages) -> bool:
        """Whether a message holds a header that this template writes as ordinary text."""
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
        for message in messages:
            role, content = message["role"], message["content"].strip()
            if role == "assistant":
                segments += [
                    Segment("<|assistant|>\n", False),
                    Segment(content, True),
                    Segment(self.eos, True, is_control=True),
                    Segment("\n", True),
                ]
            else:
                segments.append(Segment(f"<|{role}|>\n{content}\n", False))
        last = segments.pop()
        return segments if messages[-1]["role"] == "assistant" else [*segments, Segment(last.text.rstrip(), False)]

    def has_forged_header(self, messages: Messages) -> bool:
        """Whether a message holds `<|system|>`, `<|user|>` or `<|assistant|>` at the end of a line."""
        for message in messages:
            content = message["content"].strip() + ("" if message["role"] == "assistant" else "\n")
            if any(f"<|{role}|>\n" in content for role in ("system", "user", "assistant")):
                return True
        return False


class Plain:
    """Prompt, separator, completion, EOS; a dialogue is one such pair after the other.

    A separator that ends in a space leaves the space to the completion, as in published code for prompt and completion:
    byte-level tokenizers join it to the first word, which would otherwise never be a target.

    There are no headers: EOS ends a completion, and nothing but the separator tells a prompt from what precedes it.

    Args:
        eos: What ends a completion.
        separator: What stands between prompt and completion.
    """

    adds_bos = True

    def __init__(self, eos: str, separator: str = "\n") -> None:
        self.eos = eos
        self.separator = separator
        self.identity: dict[str, Any] = {"name": "plain", "version": 1, "eos": eos, "separator": separator}

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation."""
        segments: list[Segment] = []
        before = self.separator.rstrip(" ")
        spaces = self.separator[len(before) :]
        after_prompt = False
        for message in messages:
            content = message["content"].strip()
            if message["role"] == "assistant":
                segments += [Segment(spaces + content if after_prompt else content, True)]
                segments.append(Segment(self.eos, True, is_control=True))
                after_prompt = False
            else:
                segments.append(Segment(content + before, False))
                after_prompt = True
        return segments

    def has_forged_header(self, messages: Messages) -> bool:
        """Never: there are no headers."""
        return False


class Chat:
    """The tokenizer's own chat template.

    Targets are what `{% generation %}` marks, where the template has it. Otherwise an assistant's turn is what
    rendering the conversation up to and including it adds to rendering it up to the generation prompt; both must be
    beginnings of the whole, and the turn must begin with the message, or the conversation is refused. The turn's end
    marker is a target, whitespace after it is not.

    A template that prints today's date prints 26 July 2024 instead, so that the same data gives the same tokens.
    """

    adds_bos = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                f"data.template is chat, but the tokenizer ({tokenizer.name_or_path}) has no chat template. "
                "Use data.template: tulu or plain, or a model whose tokenizer has one."
            )
        self.identity: dict[str, Any] = {"name": "chat", "version": 1}
        source = tokenizer.get_chat_template()
        self.marks_generation = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self.source = _with_fixed_date(source)
        self.variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special = sorted(special, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, self.special)) + ")") if special else None
        self._hidden = [*self.special, ESCAPE]
        self._to_hide = re.compile("|".join(map(re.escape, self._hidden)))
        self.text_headers = self._text_headers()

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation."""
        hidden = [{"role": m["role"], "content": self._hide(m["content"])} for m in messages]
        text, spans = self._spans(hidden)
        segments: list[Segment] = []
        position = 0
        for start, end in [*spans, (len(text), len(text))]:
            segments += self._segments(text[position:start], False)
            segments += self._segments(text[start:end], True)
            position = end
        return segments

    def has_forged_header(self, messages: Messages) -> bool:
        """Whether a message holds text by which the template alone, without a control token, divides two messages."""
        return any(header in message["content"] for message in messages for header in self.text_headers)

    def _text_headers(self) -> list[str]:
        found: set[str] = set()
        for system in ([], [{"role": "system", "content": PROBE}]):
            messages = [*system, *({"role": role, "content": PROBE} for role in ("user", "assistant") * 2)]
            with suppress(UserError):  # the template refuses such a conversation (a system message, say)
                between = self._render(messages)[0].split(PROBE)[1:-1]
                found |= {text.strip() for text in between if not any(special in text for special in self.special)}
        return sorted(found - {""})

    def _spans(self, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
        if self.marks_generation:
            return self._render(messages)
        text, _ = self._render(messages)
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._render(messages[:i], add_generation_prompt=True)
            until, _ = self._render(messages[: i + 1])
            if not (text.startswith(until) and until.startswith(before)):
                raise UserError(
                    f"The chat template does not write message {i} (assistant) the same way alone and within its "
                    "conversation, so its tokens cannot be told from the rest exactly. Use a template with "
                    "{% generation %} markers, or data.template: tulu."
                )
            turn = until[len(before) :]
            if not turn.lstrip().startswith(message["content"].strip()):
                raise UserError(
                    f"The chat template does not write message {i} (assistant) right after its generation prompt: "
                    f"found {turn[:60]!r}. Use a template with {{% generation %}} markers, or data.template: tulu."
                )
            spans.append((len(before), len(before) + len(self._without_tail(turn))))
        return text, spans

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, marked = render_jinja_template(
                conversations=[messages],
                chat_template=self.source,
                return_assistant_tokens_mask=self.marks_generation,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages) or "nothing"
            raise UserError(f"The chat template refuses a conversation of {roles}: {error}") from None
        return texts[0], [(int(start), int(end)) for start, end in marked[0]] if marked else []

    def _without_tail(self, turn: str) -> str:
        stripped = turn.rstrip()
        return stripped if any(stripped.endswith(special) for special in self.special) else turn

    def _segments(self, text: str, is_target: bool) -> list[Segment]:
        pieces = self._control.split(text) if self._control is not None else [text]
        return [
            Segment(self._show(piece), is_target, is_control=number % 2 == 1)
            for number, piece in enumerate(pieces)
            if piece
        ]

    def _hide(self, content: str) -> str:
        return self._to_hide.sub(lambda found: f"{ESCAPE}{self._hidden.index(found.group())}\ue001", content)

    def _show(self, text: str) -> str:
        return ESCAPED.sub(lambda found: self._hidden[int(found.group(1))], text)


def _with_fixed_date(source: str) -> str:
    if "strftime_now" not in source:
        return source
    replaced = "".join(f"|replace({code!r}, {value!r})" for code, value in DATE.items())
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}" + source
