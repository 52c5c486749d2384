from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.messages import Example
from forgetting.corpus.pool import Examples, content_key, draw, hash_order, shares
from forgetting.errors import UserError


def pair(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pool_of(numbers: list[int], names: str = "AB") -> Examples:
    pool = Examples()
    for row, number in enumerate(numbers):
        pool.append(Example(pair(f"q{number}", "a"), names[row % len(names)], row))
    return pool


def config(train: int, reference: int, validation: int, **changes: Any) -> CorpusConfig:
    source = Source(name="S", path="x.json", messages="messages")
    return CorpusConfig(
        {"made": source}, num_train=train, num_reference=reference, num_validation=validation, **changes
    )


def test_what_counts_as_the_same_conversation() -> None:
    key = content_key(pair("What is  it?\r\n", " A cafe\u0301. "))
    assert key == content_key(pair("What is it?", "A caf\u00e9."))
    assert key != content_key(pair("what is it?", "A caf\u00e9."))
    assert key != content_key(pair("What is it", "A caf\u00e9."))
    assert key != content_key([{"role": "system", "content": "What is it?"}, *pair("What is it?", "A caf\u00e9.")[1:]])
    assert content_key(pair("a b", "c")) != content_key(pair("a", "b c"))


@given(
    st.lists(st.integers(0, 30), min_size=8, max_size=120),
    st.integers(0, 5),
    st.booleans(),
)
def test_splits_are_disjoint_by_content_and_train_does_not_depend_on_the_reference(
    numbers: list[int], seed: int, deduplicate: bool
) -> None:
    pool = pool_of(numbers)
    distinct = len(set(numbers))
    sizes = (distinct // 3, distinct // 3, distinct // 3)
    drawn = draw(pool, config(*sizes, seed=seed, deduplicate_reference=deduplicate), {})
    keys = {split: conversations.keys for split, conversations in drawn.splits.items()}
    assert tuple(map(len, keys.values())) == sizes
    for first, second in [("train", "reference"), ("train", "validation"), ("reference", "validation")]:
        assert not set(keys[first]) & set(keys[second])
    for split in ("train", "validation"):
        assert len(set(keys[split])) == len(keys[split])
    rows = [row for conversations in drawn.splits.values() for row in conversations.rows]
    assert len(set(rows)) == len(rows)  # without replacement
    assert drawn.num_unique == distinct
    assert sum(drawn.duplicates.values()) == len(numbers) - distinct

    other = draw(pool, config(*sizes, seed=seed, deduplicate_reference=not deduplicate), {})
    for split in ("train", "validation"):
        assert other.splits[split] == drawn.splits[split]


def test_duplicates_stay_in_the_reference_at_their_share() -> None:
    numbers = [n for n in range(3000) for _ in range(1 + 3 * (n % 2))]  # odd ones four times
    pool = pool_of(numbers)
    without = draw(pool, config(500, 1000, 100), {}).splits["reference"]
    left_in = draw(pool, config(500, 1000, 100, deduplicate_reference=False), {}).splits["reference"]

    def share_of_odd(split: Examples) -> float:
        return sum(numbers[row] % 2 for row in split.rows) / len(split)

    assert len(set(without.keys)) == 1000
    assert len(set(left_in.keys)) < 950
    assert share_of_odd(without) == pytest.approx(0.5, abs=0.06)
    assert share_of_odd(left_in) == pytest.approx(0.8, abs=0.05)


def test_the_draw_is_uniform_and_seeded() -> None:
    pool = pool_of(list(range(200)))
    counts = Counter(
        row for seed in range(400) for row in draw(pool, config(50, 0, 0, seed=seed), {}).splits["train"].rows
    )
    assert sum(counts.values()) == 400 * 50
    # Binomial(400, 1/4): mean 100, standard deviation 8.7; the largest of 200 stays within 4.5 of these.
    assert all(abs(counts[row] - 100) < 4.5 * 8.7 for row in range(200))
    variance = sum((counts[row] - 100) ** 2 for row in range(200)) / 200
    assert variance == pytest.approx(75, rel=0.4)
    first, again, other = (draw(pool, config(50, 10, 5, seed=seed), {}).splits for seed in (3, 3, 4))
    assert first == again
    assert set(first["train"].rows) != set(other["train"].rows)


def test_train_does_not_depend_on_the_other_sizes_nor_on_the_order_of_the_pool() -> None:
    pool = pool_of(list(range(100)), names="A")
    train = draw(pool, config(20, 10, 10), {}).splits["train"]
    assert draw(pool, config(20, 30, 0), {}).splits["train"] == train
    assert draw(pool, config(10, 0, 0), {}).splits["train"] == train.take(list(range(10)))
    backwards = draw(pool.take(list(range(99, -1, -1))), config(20, 10, 10), {}).splits["train"]
    assert backwards == train


def test_the_first_of_equal_conversations_is_kept() -> None:
    pool = pool_of([7, 7, 8, 7], names="ABCD")
    drawn = draw(pool, config(2, 0, 0), {})
    assert sorted(drawn.splits["train"].sources) == ["A", "C"]
    assert drawn.duplicates == {"B": 1, "D": 1}


def test_a_named_split_is_kept_out_of_what_is_drawn() -> None:
    pool = pool_of(list(range(20)))
    named = pool_of(list(range(10)), names="P")
    source = Source(name="P", path="p.json", messages="messages")
    settings = CorpusConfig({"made": source}, num_reference=5, num_validation=5, train=source)
    drawn = draw(pool, settings, {"train": named})
    assert set(drawn.splits) == {"reference", "validation"}
    assert all(row >= 10 for split in drawn.splits.values() for row in split.rows)


def test_too_few_conversations() -> None:
    message = (
        r"4 distinct examples to draw from \(6 rows, 2 duplicates\), but 3 train \+ 2 reference \+ 1 validation "
        r"= 6 are wanted. Lower data.corpus.num_train"
    )
    with pytest.raises(UserError, match=message):
        draw(pool_of([1, 2, 3, 3, 3, 4]), config(3, 2, 1), {})


def test_a_source_is_cut_to_its_size_by_seed_and_name() -> None:
    pool = pool_of(list(range(50)))
    rows = pool.sampled(20, 0, "S").rows
    assert rows == sorted(rows)
    assert len(set(rows)) == 20
    assert rows == pool.sampled(20, 0, "S").rows
    assert rows != pool.sampled(20, 1, "S").rows
    assert rows != pool.sampled(20, 0, "T").rows
    with pytest.raises(UserError, match="size is 60, but it has 50 usable examples"):
        pool.sampled(60, 0, "S")


def test_hash_order_are_fixed() -> None:
    # Made by this function; if it changes, every corpus drawn before changes too: raise FORMAT in prepare.py then.
    assert hash_order(0, "draw", b"key").hex() == "797b26b87760c20d5a62a2126726b95ac7cfc80a4ee1411736b1d5e915b877d5"
    assert hash_order(0, "draw", b"a", b"bc") != hash_order(0, "draw", b"ab", b"c")


def test_shares_in_the_form_of_table_1() -> None:
    assert shares(["B", "A", "B"]) == {
        "A": {"samples": 1, "percentage": 33.33},
        "B": {"samples": 2, "percentage": 66.67},
    }
    assert shares([]) == {}
