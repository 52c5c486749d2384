"""A tokenizer's own chat template: messages → text in segments."""

import re
from contextlib import suppress
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from forgetting.corpus.encoding import Segment
from forgetting.corpus.messages import Messages
from forgetting.errors import UserError

ESCAPE = "\ue000"
ESCAPED = re.compile("\ue000([0-9]+)\ue001")
PROBE = "\ue005"  # a message's whole content, to see what the template writes around it
DATE = {"%d": "26", "%m": "07", "%Y": "2024", "%y": "24", "%b": "Jul", "%B": "July", "%A": "Friday", "%a": "Fri"}


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
        self.keeps_leading, self.keeps_trailing = self._kept_whitespace()

    def render(self, messages: Messages) -> list[Segment]:
        """The segments of a conversation."""
        hidden = [{"role": m["role"], "content": self._hide(m["content"])} for m in messages]
        text, spans = self._spans(hidden)
        segments: list[Segment] = []
        position = 0
        for number, (start, end) in enumerate(spans, 1):
            segments += self._segments(text[position:start], False)
            targets = self._segments(text[start:end], True)
            is_last = number == len(spans) and messages[-1]["role"] == "assistant"
            segments += self._with_origin(targets, messages[-1]["content"]) if is_last else targets
            position = end
        return segments + self._segments(text[position:], False)

    def _with_origin(self, targets: list[Segment], content: str) -> list[Segment]:
        """Cut the response out of the segment of the last turn that holds it. None gets an origin where it is unclear.

        Without `{% generation %}` a turn is known to begin with the message. With it the template may write anything
        around the message, which is then found only if it is there once.
        """
        written = content if self.keeps_leading else content.lstrip()
        written = written if self.keeps_trailing else written.rstrip()
        holders = [i for i, segment in enumerate(targets) if not segment.is_control and written in segment.text]
        if not holders:
            return targets
        text = targets[holders[0]].text
        start, end = text.index(written), text.index(written) + len(written)
        if self.marks_generation and (len(holders) > 1 or text.rindex(written) != start):
            return targets
        parts = [
            Segment(text[:start], True),
            Segment(written, True, origin=content.index(written)),
            Segment(text[end:], True),
        ]
        return [*targets[: holders[0]], *(part for part in parts if part.text), *targets[holders[0] + 1 :]]

    def has_forged_header(self, messages: Messages) -> bool:
        """Return whether a message holds text by which the template, without a control token, divides messages."""
        return any(header in message["content"] for message in messages for header in self.text_headers)

    def _text_headers(self) -> list[str]:
        headers: set[str] = set()
        for system in ([], [{"role": "system", "content": PROBE}]):
            messages = [*system, *({"role": role, "content": PROBE} for role in ("user", "assistant") * 2)]
            with suppress(UserError):  # the template refuses such a conversation (a system message, say)
                between = self._render(messages)[0].split(PROBE)[1:-1]
                headers |= {text.strip() for text in between if not any(special in text for special in self.special)}
        return sorted(headers - {""})

    def _kept_whitespace(self) -> tuple[bool, bool]:
        """Return whether whitespace before and after a response stays.

        A template that refuses the probe is taken to keep it. Where that is wrong, a response with such whitespace is
        not found, and its noise is refused.
        """
        messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": f"\t{PROBE}\t"}]
        with suppress(UserError):
            before, _, after = self._render(messages)[0].rpartition(PROBE)
            return before.endswith("\t"), after.startswith("\t")
        return True, True

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
        return self._to_hide.sub(lambda match: f"{ESCAPE}{self._hidden.index(match.group())}\ue001", content)

    def _show(self, text: str) -> str:
        return ESCAPED.sub(lambda match: self._hidden[int(match.group(1))], text)


def _with_fixed_date(source: str) -> str:
    if "strftime_now" not in source:
        return source
    replaced = "".join(f"|replace({code!r}, {value!r})" for code, value in DATE.items())
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}" + source
