"""Pieces of tokens: they join to the text of the whole, also where a character is several tokens."""

import pytest
from transformers import PreTrainedTokenizerFast

from forgetting.inspection import pieces
from forgetting.inspection.pieces import token_pieces


@pytest.mark.parametrize("text", ["", "plain", "naïve\n\n日本 🙂", "<script>alert(1)</script>", "e\u0301 \u2028"])
def test_pieces_join_to_the_text(tiny_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    found = token_pieces(tiny_tokenizer, ids)
    assert found.are_exact
    assert len(found.texts) == len(ids)
    assert "".join(found.texts) == text


def test_the_token_that_ends_a_character_has_it(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_pieces(tiny_tokenizer, tiny_tokenizer.encode("a🙂", add_special_tokens=False)).texts == [
        "a", "", "", "", "🙂",
    ]  # fmt: skip


def test_an_example_may_end_within_a_character(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tiny_tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    found = token_pieces(tiny_tokenizer, ids)
    assert found.are_exact
    assert "".join(found.texts) == tiny_tokenizer.decode(ids)


@pytest.mark.parametrize("streamed", [None, ["x", "y"]])
def test_names_stand_in_for_pieces_that_do_not_join(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, streamed: list[str] | None
) -> None:
    monkeypatch.setattr(pieces, "_streamed", lambda tokenizer, ids: streamed)
    found = token_pieces(tiny_tokenizer, tiny_tokenizer.encode("ab", add_special_tokens=False))
    assert found == pieces.Pieces(["a", "b"], False)
