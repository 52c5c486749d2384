"""The base model: a small Llama, pretrained on the world's web, in the folder format of transformers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forgetting.lab.language import BOS, EOS, PAD, SPECIAL, UNKNOWN, Language
from forgetting.lab.texts import pretraining_document

OnStep = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""

MAX_LENGTH = 64


@dataclass(frozen=True)
class Pretraining:
    """The base model and its training.

    Attributes:
        hidden: Width.
        layers: Decoder layers.
        heads: Attention heads.
        steps: Optimizer steps.
        documents: Documents in a step.
        learning_rate: AdamW's peak, after `warmup` steps; it falls linearly, to a fiftieth.
        warmup: Steps over which the learning rate rises.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    steps: int = 600
    documents: int = 192
    learning_rate: float = 4e-3
    warmup: int = 50

    def rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * max(0.02, 1 - step / self.steps)


@dataclass(frozen=True)
class PackedDocuments:
    """Documents laid end to end in rows, so that hardly any position is padding.

    Attributes:
        input_ids: The rows.
        position_ids: Each document begins at 0.
        attention_mask: Each token sees itself and what precedes it in its document.
        predicted: Positions whose next one belongs to the same document.
    """

    input_ids: Int[Tensor, "rows time"]
    position_ids: Int[Tensor, "rows time"]
    attention_mask: Bool[Tensor, "rows 1 time time"]
    predicted: Bool[Tensor, "rows time-1"]


def pack(documents: list[list[int]], width: int) -> PackedDocuments:
    """Put each document, longest first, into the first row of `width` tokens that has room for it."""
    rows: list[list[list[int]]] = []
    room: list[int] = []
    for document in sorted(documents, key=len, reverse=True):
        place = next((row for row, left in enumerate(room) if left >= len(document)), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(width)
        rows[place].append(document)
        room[place] -= len(document)

    def filled(values: Callable[[int, list[int]], list[int]], filling: int) -> Int[Tensor, "rows time"]:
        lines = [[value for number, document in enumerate(row) for value in values(number, document)] for row in rows]
        return torch.tensor([line + [filling] * (width - len(line)) for line in lines])

    owner = filled(lambda number, document: [number] * len(document), -1)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return PackedDocuments(
        input_ids=filled(lambda _, document: document, 0),
        position_ids=filled(lambda _, document: list(range(len(document))), 0),
        attention_mask=((owner[:, :, None] == owner[:, None, :]) & causal)[:, None],
        predicted=(owner[:, 1:] == owner[:, :-1]) & (owner[:, 1:] >= 0),
    )


def word_tokenizer(language: Language) -> PreTrainedTokenizerFast:
    """One token a word; BOS goes in front."""
    ids = language.ids
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment] - tokenizers' stubs lack setters
    tokenizer.add_special_tokens(list(SPECIAL))
    in_front = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    tokenizer.post_processor = in_front  # type: ignore[assignment] - as above
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN,
        model_max_length=MAX_LENGTH, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def untrained_model(language: Language, seed: int, settings: Pretraining) -> LlamaForCausalLM:
    """The model before its first step."""
    ids = language.ids
    configuration = LlamaConfig(
        vocab_size=len(ids), hidden_size=settings.hidden, intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers, num_attention_heads=settings.heads, num_key_value_heads=settings.heads,
        max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        pad_token_id=ids[PAD], bos_token_id=ids[BOS], eos_token_id=ids[EOS],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(configuration)


def next_token_loss(model: LlamaForCausalLM, packed: PackedDocuments) -> Float[Tensor, ""]:
    """Mean nll of every token that follows another in its document, in nats."""
    hidden = model.model(
        input_ids=packed.input_ids, attention_mask=packed.attention_mask, position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state  # fmt: skip
    targets = packed.input_ids[:, 1:][packed.predicted]
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][packed.predicted]), targets)


def pretrain(language: Language, seed: int, settings: Pretraining, on_step: OnStep | None = None) -> LlamaForCausalLM:
    """Pretrain the base model on fresh documents at every step; the seed decides its first weights and those."""
    model = untrained_model(language, seed, settings)
    ids = language.ids
    draw = Random(f"web {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    with one_thread():
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            texts = [pretraining_document(draw, language) for _ in range(settings.documents)]
            documents = [[ids[word] for word in text] for text in texts]
            optimizer.zero_grad()
            next_token_loss(model, pack(documents, MAX_LENGTH)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, settings.steps)
    return model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside.

    Sums then have one order, whatever the number of cores; and at this size more threads gain little on an idle machine
    and stall each other on a busy one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_base(
    folder: Path, language: Language, seed: int, settings: Pretraining, on_step: OnStep | None = None
) -> None:
    """Pretrain the base model and write it with its tokenizer."""
    pretrain(language, seed, settings, on_step).save_pretrained(folder)
    word_tokenizer(language).save_pretrained(folder)
