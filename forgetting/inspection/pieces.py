"""Text of each token, so that the pieces of an example are exactly its text."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Pieces:
    """Text of each token of an example.

    Attributes:
        texts: One per token. A token that only begins or continues a character has none; the token that ends the
            character has it whole.
        are_exact: Whether they join to the tokenizer's decoding of the whole. Otherwise they are names.
    """

    texts: list[str]
    are_exact: bool


def token_pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> Pieces:
    """Divide the text of `ids` among its tokens.

    Tokens are decoded one after another, which some tokenizers cannot do for every sequence. So the result is compared
    with the decoding of the whole, and names of the vocabulary stand in for pieces that do not join to it.

    Args:
        tokenizer: A fast tokenizer.
        ids: Tokens of one example.
    """
    numbers = [int(number) for number in ids]
    whole = tokenizer.backend_tokenizer.decode(numbers, skip_special_tokens=False)
    texts = _streamed(tokenizer, numbers)
    if texts is not None:
        joined = "".join(texts)
        if texts and whole.startswith(joined):  # an example may end in the middle of a character
            texts[-1] += whole[len(joined) :]
            return Pieces(texts, True)
        if joined == whole:
            return Pieces(texts, True)
    names = tokenizer.convert_ids_to_tokens(numbers)
    return Pieces([str(name) for name in names], False)


def _streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str] | None:
    """Pieces of a decoding token by token; None where the tokenizer cannot decode these tokens so."""
    stream = DecodeStream(skip_special_tokens=False)
    try:
        return [stream.step(tokenizer.backend_tokenizer, number) or "" for number in ids]
    except Exception:  # noqa: BLE001 - the library raises its errors as plain Exception
        return None
