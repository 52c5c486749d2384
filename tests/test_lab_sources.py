import json
from pathlib import Path
from random import Random

import pytest
from test_lab_noise import within

from forgetting.lab.language import Language, build_language
from forgetting.lab.texts import MIXED, NOISE, SOURCES, Kind, Row, draw_sources, noisy_row, sources_with, write_rows

NUM_DISTINCT = 800


@pytest.fixture(scope="module")
def language() -> Language:
    return build_language(100)


@pytest.fixture(scope="module")
def sources(language: Language) -> dict[str, list[Row]]:
    return draw_sources(100, language, NUM_DISTINCT)


def test_shares_are_the_papers(sources: dict[str, list[Row]]):
    assert sum(quality.share for quality in SOURCES.values()) == pytest.approx(1)
    total = sum(map(len, sources.values()))
    for name, quality in SOURCES.items():
        assert within(len(sources[name]), total, quality.share)


def test_as_many_distinct_rows_as_asked_for_and_duplicates_beside_them(sources: dict[str, list[Row]]):
    rows = [(row.prompt, row.response) for of_source in sources.values() for row in of_source]
    assert len(set(rows)) == NUM_DISTINCT
    assert len(rows) > NUM_DISTINCT


def test_every_word_of_a_response_has_its_kind(sources: dict[str, list[Row]]):
    for of_source in sources.values():
        for row in of_source:
            assert len(row.response.split()) == len(row.noise)


def test_tested_items_are_never_asked(sources: dict[str, list[Row]], language: Language):
    tested = {" ".join(item.prompt) for items in language.test_items.values() for item in items}
    taught = {" ".join(item.prompt) for items in language.train_items.values() for item in items}
    asked = {row.prompt for of_source in sources.values() for row in of_source}
    assert asked <= taught
    assert not asked & tested


@pytest.mark.parametrize(
    ("name", "noise"), [*((name, MIXED) for name in SOURCES), *(("oasst", noise) for noise in NOISE)]
)
def test_noise_of_a_source(name: str, noise: str, language: Language):
    draw, quality = Random(0), sources_with(noise)[name]
    kinds = [kind for _ in range(1_500) for kind in noisy_row(draw, language, quality).noise]
    said = len(kinds) - kinds.count(Kind.BOILERPLATE)
    assert within(kinds.count(Kind.RANDOM), said, quality.random)
    assert within(kinds.count(Kind.MISLEADING), said // 2, quality.misleading * (1 - quality.random))
    assert within(kinds.count(Kind.BOILERPLATE) // 3, said // 2, quality.boilerplate)


def test_each_noise_has_its_rates_and_rows_of_its_own(language: Language):
    assert sources_with(MIXED) == SOURCES
    assert {quality.misleading for quality in sources_with("random").values()} == {0}
    assert [quality.random for quality in sources_with("random").values()] == pytest.approx([0.08, 0.16, 0.4, 0.2, 0.2])
    assert [quality.misleading for quality in sources_with("more").values()] == pytest.approx(
        [0.3, 0.525, 0.9, 0.675, 0.825]
    )
    drawn = [draw_sources(100, language, 200, noise) for noise in NOISE]
    assert all(drawn.count(rows) == 1 for rows in drawn)


def test_same_seed_same_rows(language: Language):
    assert draw_sources(1, language, 50) == draw_sources(1, language, 50)
    assert draw_sources(1, language, 50) != draw_sources(2, language, 50)


def test_rows_on_disk_have_their_noise_as_spans_of_words(tmp_path: Path, sources: dict[str, list[Row]]):
    write_rows(tmp_path / "dolly.jsonl", sources["dolly"])
    read = [json.loads(line) for line in (tmp_path / "dolly.jsonl").read_text().splitlines()]
    kinds: set[str] = set()
    for line, row in zip(read, sources["dolly"], strict=True):
        assert (line["prompt"], line["response"]) == (row.prompt, row.response)
        noisy = [(word, kind) for word, kind in zip(row.response.split(), row.noise, strict=True) if kind != "clean"]
        assert [(row.response[start:end], kind) for start, end, kind in line["noise"]] == noisy
        kinds |= {kind for _, kind in noisy}
    assert kinds == {"misleading", "random", "boilerplate"}  # control
