"""The chat template of an adapter's tokenizer: it renders what training rendered, token by token."""

import json
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from forgetting.corpus.chat import Chat
from forgetting.corpus.encoding import Encoder, bos_ids
from forgetting.corpus.messages import Messages
from forgetting.corpus.templates import eos_of, template_for
from forgetting.errors import UserError

TULU = """\
{{- %(prefix)s -}}
{%%- for message in messages -%%}
{%%- set content = message['content'] | trim -%%}
{%%- if message['role'] == 'assistant' -%%}
{{- '<|assistant|>\\n' + content + %(eos)s -}}
{%%- if not loop.last or add_generation_prompt -%%}{{- '\\n' -}}{%%- endif -%%}
{%%- elif loop.last and not add_generation_prompt -%%}
{{- '<|' + message['role'] + '|>' + ('\\n' + content if content else '') -}}
{%%- else -%%}
{{- '<|' + message['role'] + '|>\\n' + content + '\\n' -}}
{%%- endif -%%}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}{{- '<|assistant|>\\n' -}}{%%- endif -%%}
"""
PLAIN = """\
{{- %(prefix)s -}}
{%%- for message in messages -%%}
{{- message['content'] | trim -}}
{%%- if message['role'] == 'assistant' -%%}{{- %(eos)s -}}{%%- else -%%}{{- '\\n' -}}{%%- endif -%%}
{%%- endfor -%%}
"""
PROBES: tuple[Messages, ...] = tuple(
    [{"role": role, "content": content} for role, content in zip(["user", "assistant"] * 2, contents, strict=False)]
    for contents in (("What is 1 + 2?", "It is 3."), ("Hello", "- a\n- b", "And then?", "Étude 你好"))
)


@dataclass(frozen=True)
class ExportedChat:
    """A chat template in Jinja.

    Attributes:
        source: Its text.
        end_id: The control token that ends a response, at which generation stops; None where the template has none.
        is_exact: Whether the tokenizer gives the tokens of training for it. Not where a tokenizer treats the beginning
            of a text in a way of its own that no text after BOS can repeat.
    """

    source: str
    end_id: int | None
    is_exact: bool


def exported_chat(name: str, tokenizer: PreTrainedTokenizerBase) -> ExportedChat:
    """Write the chat template of a training template.

    Control tokens in a message are the one difference that remains: training encodes them as plain text, a tokenizer
    reads them as what they are.

    Args:
        name: tulu, chat or plain.
        tokenizer: The one that the corpus was encoded with.

    Raises:
        UserError: There is no such template, or the tokenizer lacks what it needs.
    """
    if name == "chat":
        sources = [Chat(tokenizer).source]
    else:
        # A template's text is encoded without the tokenizer's own BOS, so it is written out. Where a tokenizer puts a
        # space in front of a text's first word, BOS takes that place: the space is then written out, too.
        bos = "".join(tokenizer.convert_ids_to_tokens(bos_ids(tokenizer)))
        body = {"tulu": TULU, "plain": PLAIN}[name]
        values = [
            {"prefix": json.dumps(prefix), "eos": json.dumps(eos_of(tokenizer, name))} for prefix in (bos, f"{bos} ")
        ]
        sources = [body % each for each in values]
    exact = [source for source in sources if _is_exact(source, name, tokenizer)]
    return ExportedChat((exact or sources)[0], _end_id(name, tokenizer), bool(exact))


def _is_exact(source: str, name: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    template = template_for(name, tokenizer)
    encoder = Encoder(tokenizer, template.adds_bos)
    for messages in PROBES:
        try:
            (example,), _ = encoder.encode([template.render(messages)], max_length=10_000)
        except UserError:  # a template for single turns, say
            continue
        if rendered_ids(tokenizer, messages, source) != example.input_ids.tolist():
            return False
    return True


def rendered_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, source: str | None = None, generation: bool = False
) -> list[int]:
    """Token ids of a conversation by a chat template.

    Args:
        tokenizer: Any.
        messages: The conversation.
        source: A chat template; None is the tokenizer's own.
        generation: End with the generation prompt.
    """
    ids = tokenizer.apply_chat_template(
        messages, chat_template=source, add_generation_prompt=generation, tokenize=True, return_dict=False
    )
    return cast(list[int], ids)


def _end_id(name: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    targets = [segment for segment in template_for(name, tokenizer).render(PROBES[0]) if segment.is_target]
    controls = [segment.text for segment in targets if segment.is_control]
    return cast(int, tokenizer.convert_tokens_to_ids(controls[-1])) if controls else None
