"""`inspect`: the page of a scored experiment, in Python and in a browser; rows and terminal."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from small_experiment import METHOD, REFERENCE, write_experiments

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.inspection import examples as examples_module
from forgetting.inspection import page as page_module
from forgetting.inspection.detection import detection
from forgetting.inspection.examples import Examples
from forgetting.inspection.page import build_page
from forgetting.inspection.pieces import Pieces, token_pieces
from forgetting.inspection.rows import print_examples, row, write_rows
from forgetting.method.data import ForgettingData
from forgetting.method.masks import Selected
from forgetting.model.backbone import load_tokenizer
from forgetting.runs.inspect import open_selection

SOURCE = 'made: {path: source.jsonl, prompt: "{question}", response: "{answer}"}'
NOISY = 'noisy: {path: noisy.jsonl, prompt: "{question}", response: "{answer}", noise: noise}'
ATTACK = "</script><script>document.title = 'attacked'</script><img src=https://example.org/x.png>"
PAGE = Path("inspect.html")
SEQUENCE, WITHIN = ["--data.granularity=sequence"], ["--data.scope=example"]
IGNORED = ["--data.positive_fraction=0.4", "--data.forget_fraction=0.25"]


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment, scored, with a second source: known noise, markup, and characters of several tokens."""
    folder = tmp_path_factory.mktemp("inspected")
    write_experiments(folder)
    for name in (METHOD, REFERENCE):
        file = folder / name
        text = file.read_text().replace(SOURCE, f"{SOURCE}\n      {NOISY}").replace("max_length: 64", "max_length: 200")
        file.write_text(text)
    rows = [
        {"question": f"{i}? {'' if i % 2 else ATTACK}", "answer": f"{ATTACK if i % 2 else 'naïve'}\n🙂 {i}",
         "noise": [[0, 5, "typo"]]}
        for i in range(40)
    ]  # fmt: skip
    (folder / "noisy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("fit", "score"):
            main([command, "--config", REFERENCE])
    return folder


@pytest.fixture
def inside(two_sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """That folder, to be in; the pages go to one of the test's own."""
    monkeypatch.chdir(two_sources)
    return tmp_path


def inspect(*options: str) -> None:
    main(["inspect", "--config", METHOD, *options])


def content(page: Path) -> dict[str, Any]:
    """The data that a page carries."""
    return json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[0])


def rows(folder: Path, num_examples: int = 2000) -> list[dict[str, Any]]:
    """The rows of a sample, read from their file."""
    write_rows(opened()[1], folder / "rows.jsonl", num_examples)
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def states(written: list[dict[str, Any]]) -> Counter[str]:
    """How many tokens the rows call positive, negative and ignored."""
    return Counter(state for each in written for state in each["annotations"]["selection"] if state)


@cache
def opened(*options: str) -> tuple[ForgettingData, Examples]:
    """The experiment in the current folder, its scores and selection; arrays are mapped, so it outlives the folder."""
    data, _ = open_selection(["--config", METHOD, *options])
    return data, Examples(data, load_tokenizer(data.backbone, data.revision))


def exact_counts(data: ForgettingData, rho: float | None = None) -> dict[str, int]:
    """How many tokens training makes positive, negative and neither, at another ρ where one is given."""
    assert data.scored is not None
    selection = data.selection if rho is None else replace(data.selection, positive_fraction=rho)
    masks = Selected(data.scored, selection).masks(data.scored)
    num_targets = data.tokens.split("train").num_targets
    sides = zip(*(masks(i) for i in range(len(num_targets))), strict=True)
    positive, negative = (sum(int(mask.sum()) for mask in side) for side in sides)
    return {"positive": positive, "negative": negative, "ignored": int(num_targets.sum()) - positive - negative}


def at_own(page: dict[str, Any]) -> dict[str, int]:
    """The counts of a page at the experiment's own step."""
    positive, kept = page["all"]["positive"][page["own"]], page["all"]["kept"][page["own"]]
    return {"positive": positive, "negative": page["total"] - kept, "ignored": kept - positive}


def test_a_reference_is_shown_as_a_method_would_select(inside: Path) -> None:
    pages = {}
    for name, file in (("tiny/reference", REFERENCE), ("tiny/forgetting", METHOD)):
        main(["inspect", "--config", file, "--output", str(inside / "page.html")])
        pages[name] = (inside / "page.html").read_text().replace(name, "the run")
    assert pages["tiny/reference"] == pages["tiny/forgetting"]
    assert "negative at ρ 0.7, by source: made" in pages["tiny/reference"]  # selection health


@pytest.mark.parametrize("options", [
    [], ["--data.positive_fraction=0.3337"], SEQUENCE, IGNORED, WITHIN,
    ["--data.positive_fraction=null", "--data.threshold=0"],
    ["--data.positive_fraction=null", "--data.threshold=-100"],
    ["--data.positive_fraction=null", "--data.threshold=0", "--data.granularity=sequence"],
    ["--data.score=Random"],
], ids=" ".join)  # fmt: skip
def test_the_experiments_own_step_is_its_exact_selection(inside: Path, options: list[str]) -> None:
    data, examples = opened(*options)
    (inside / "page.html").write_text(build_page(examples, "a run", 2000))
    page = content(inside / "page.html")
    exact = exact_counts(data)
    assert at_own(page) == exact
    written = states([row(examples, example) for example in examples.sampled(2000)])
    assert {state: written[state] for state in exact} == exact
    for group in ("sources", "positions"):
        assert sum(each["total"] for each in page[group]) == page["total"]
        assert sum(each["kept"][page["own"]] for each in page[group]) == page["all"]["kept"][page["own"]]


def test_a_fraction_that_is_no_hundredth_is_on_the_slider(inside: Path) -> None:
    (inside / "page.html").write_text(build_page(opened("--data.positive_fraction=0.3337")[1], "a run", 1))
    page = content(inside / "page.html")
    assert page["rhos"][page["own"]] == 0.3337
    assert len(page["rhos"]) == 100


def test_known_noise_is_found_as_a_study_measures_it(inside: Path) -> None:
    data, examples = opened()
    (inside / "page.html").write_text(build_page(examples, "a run", 1))
    page = content(inside / "page.html")
    split = data.tokens.split("train")
    masks = data.masks(split)
    negative = np.concatenate([masks(i)[1] for i in range(len(split))])
    assert data.scored is not None
    assert split.noise is not None
    measured = detection(np.concatenate(list(data.scored.chunks())), negative, split.noise, data.tokens.noise_kinds)
    (typo,) = page["noise"]["kinds"]
    assert 0 < typo["total"] < page["total"]
    assert (typo["total"] - typo["kept"][page["own"]]) / typo["total"] == pytest.approx(measured.noise.recall.value)
    assert page["noise"]["auc"] == pytest.approx(measured.noise.auc.value)


def test_rows_have_a_value_per_token_and_join_to_the_text(inside: Path) -> None:
    written = rows(inside)
    assert [each["id"] for each in written] == list(range(40))
    for each in written:
        columns = [*each["metrics"].values(), *each["annotations"].values()]
        assert {len(column) for column in columns} == {len(each["tokens"])}
        assert sum(value is not None for value in each["metrics"]["rank"]) > 0
    noisy = next(each for each in written if each["source"] == "noisy" and "naïve" in "".join(each["tokens"]))
    assert "naïve\n🙂" in "".join(noisy["tokens"])
    assert "typo" in noisy["annotations"]["noise"]
    ranks = sorted(rank for each in written for rank in each["metrics"]["rank"] if rank is not None)
    assert ranks == list(range(1, len(ranks) + 1))
    first = written[0]["metrics"]
    for score, base, reference in zip(first["score"], first["nll_base"], first["nll_reference"], strict=True):
        assert score is None or score == pytest.approx(base - reference, abs=1e-6)


def test_a_page_holds_the_numbers_of_the_rows(inside: Path) -> None:
    inspect("--output", str(inside / "page.html"), "--jsonl", str(inside / "by-command.jsonl"))
    page, written = content(inside / "page.html"), rows(inside)
    assert (inside / "by-command.jsonl").read_bytes() == (inside / "rows.jsonl").read_bytes()
    assert len(page["examples"]) == len(written)
    for example, line in zip(page["examples"], written, strict=True):
        assert "".join(example["pieces"]) == "".join(line["tokens"])
        for name, key in (("base", "nll_base"), ("reference", "nll_reference")):
            values = np.frombuffer(base64.b64decode(example[name]), "<u2") * page["unit"]
            expected = [value for value in line["metrics"][key] if value is not None]
            np.testing.assert_allclose(values, expected, atol=page["unit"] / 2 + 1e-6)
        ranks = np.frombuffer(base64.b64decode(example["rank"]), "<u4").tolist()
        assert ranks == [rank for rank in line["metrics"]["rank"] if rank is not None]


def test_tables_count_the_tokens_of_the_rows(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetting.inspection.summary.NUM_SOURCES", 1)
    (inside / "page.html").write_text(build_page(opened()[1], "a run", 1))
    page, written = content(inside / "page.html"), rows(inside)
    tables: dict[str, Counter[tuple[str, str]]] = {"sources": Counter(), "positions": Counter()}
    ((largest, _),) = Counter(each["source"] for each in written).most_common(1)
    names = ["first", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128–255"]
    for each in written:
        labels = [state for state in each["annotations"]["selection"] if state]
        for place, label in enumerate(labels):
            source = each["source"] if each["source"] == largest else "1 smaller sources"
            position = "last" if place == len(labels) - 1 else names[int(np.log2(place + 1))]
            tables["sources"][source, label] += 1
            tables["positions"][position, label] += 1
    for name in ("sources", "positions"):
        found = {group["name"]: group for group in page[name] if group["total"]}
        assert set(found) == {name for name, _ in tables[name]}
        for group in found.values():
            negative = tables[name][group["name"], "negative"]
            assert group["total"] - group["kept"][page["own"]] == negative
            assert group["total"] == negative + tables[name][group["name"], "positive"]

    def fractions(types: list[dict[str, Any]]) -> list[float]:
        return [1 - group["kept"][page["own"]] / group["total"] for group in types]

    negative, kept = fractions(page["types"]["negative"]), fractions(page["types"]["kept"])
    assert negative == sorted(negative, reverse=True)
    assert kept == sorted(kept)
    assert negative[0] > kept[0]


def test_noise_is_named_by_its_own_kind(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = opened()[1]
    monkeypatch.setattr(examples, "noise_kinds", ("one", "two"))
    codes = np.resize(np.array([0, 1, 2], np.uint8), len(examples[0].score))
    named = row(examples, replace(examples[0], noise=codes))["annotations"]["noise"]
    scores = row(examples, examples[0])["metrics"]["score"]
    found = [kind for kind, score in zip(named, scores, strict=True) if score is not None]
    assert found == [[None, "one", "two"][code] for code in codes]


def test_a_large_nll_is_on_the_page_as_it_is(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = opened()[1]
    monkeypatch.setattr(examples, "nll_base", examples.nll_base * np.float32(100))
    (inside / "page.html").write_text(build_page(examples, "a run", 40))
    page = content(inside / "page.html")
    for example in page["examples"]:
        values = np.frombuffer(base64.b64decode(example["base"]), "<u2") * page["unit"]
        np.testing.assert_allclose(values, examples[example["id"]].nll_base, atol=0.51 * page["unit"])


def test_a_page_that_would_be_large_is_a_smaller_sample(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "BUDGET", 6000)
    (inside / "page.html").write_text(build_page(opened()[1], "a run", 2000))
    page = content(inside / "page.html")
    assert 1 < len(page["examples"]) < page["numExamples"] == 40
    size = len(json.dumps(page["examples"], ensure_ascii=False, separators=(",", ":")).encode())
    assert 3000 < size <= 6000 + 2 * len(page["examples"])


@pytest.mark.parametrize("number", [1, 10, 39, 40])
def test_a_sample_is_spread_over_sources_and_scores(inside: Path, number: int) -> None:
    whole, drawn = rows(inside), rows(inside, number)
    assert len(drawn) == number
    ids = [each["id"] for each in drawn]
    assert ids == sorted(set(ids))
    examples, count_all = opened()[1], len(whole)
    for source, count in Counter(each["source"] for each in whole).items():
        by_mean = sorted(
            (i for i in range(count_all) if examples.sources[i] == source), key=lambda i: examples.means[i]
        )
        places = [place for place, i in enumerate(by_mean) if i in ids]
        assert len(places) == pytest.approx(number * count / count_all, abs=1)
        assert all(abs(gap - count_all / number) <= 1 for gap in np.diff(places))


def with_escape(tokenizer: Any, ids: list[int]) -> Pieces:
    """The pieces of an example, of which the first would clear a terminal."""
    pieces = token_pieces(tokenizer, ids)
    return replace(pieces, texts=["\x1b[2J", *pieces.texts[1:]])


def test_the_terminal_shows_text_without_its_control_characters(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples_module, "token_pieces", with_escape)
    print_examples(opened()[1], 40)
    shown = capsys.readouterr().out
    assert "naïve\n🙂" in shown
    assert "\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("options", "message"), [
    (["--examples", "0"], "--examples is 0; it must be at least 1"),
    (["--examples", "few"], "invalid int value: 'few'. python -m forgetting inspect --help"),
    (["--output", "."], "--output . is a folder; give a file"),
    (["--output", "a", "--jsonl", "a"], "--output and --jsonl are both a; give two files"),
    (["--exmaples=3"], "exmaples"),
    (["--data.positive_fraction=all"], "nothing is selected; give ρ"),
    (["--data.max_length=100", "--data.store=runs/tiny/reference/seed-0/scores"], "belongs to another"),
])  # fmt: skip
def test_errors(inside: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        main(["inspect", "--config", METHOD, *options])
    assert not PAGE.exists()


def test_without_an_experiment_one_is_asked_for() -> None:
    with pytest.raises(UserError, match="inspect needs an experiment"):
        main(["inspect", "--examples", "3"])


def test_without_a_store_the_score_command_is_named_before_a_corpus_is_made(
    two_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_experiments(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="python -m forgetting score --config experiments/tiny/reference.yaml"):
        main(["inspect", "--config", METHOD])
    assert not PAGE.exists()
    assert not Path("corpora").exists()


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--output", "--jsonl", "--terminal", "--examples"))


def luminance(color: str) -> float:
    """Relative luminance by WCAG."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_on_the_whole_scale(theme: int) -> None:
    style = (Path(page_module.__file__).parent / "page.css").read_text()
    colors = {
        name: luminance(pair.split(", ")[theme]) for name, pair in re.findall(r"--(\w+): light-dark\((.*?)\)", style)
    }

    def contrast(one: str, other: str) -> float:
        low, high = sorted((colors[one], colors[other]))
        return (high + 0.05) / (low + 0.05)

    for background in ("page", "up", "down"):  # what lies between has a luminance between
        assert contrast("text", background) >= 4.5
    assert contrast("muted", "page") >= 4.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def shown_states(browser: Browser) -> dict[str, int]:
    """Tokens of each state on the page, once every example is built."""
    return browser.evaluate(
        "articles.forEach(show); Object.fromEntries(['positive', 'negative', 'ignored'].map(state =>"
        "[state, document.querySelectorAll(`main [data-state=${state}]`).length]))"
    )


@pytest.mark.parametrize("options", [[], SEQUENCE, IGNORED, WITHIN], ids=" ".join)
def test_the_slider_counts_and_marks_the_exact_selection(inside: Path, browser: Browser, options: list[str]) -> None:
    data, examples = opened(*options)
    (inside / "page.html").write_text(build_page(examples, "a run", 2000))
    browser.open((inside / "page.html").as_uri())
    for rho in (0.7, 0.31):
        exact = exact_counts(data, rho)
        browser.set("rho", browser.evaluate(f"data.rhos.indexOf({rho})"))
        assert shown_states(browser) == exact
        shown = browser.evaluate("document.getElementById('counts').textContent")
        assert f"ρ = {rho}" in shown
        for state, number in exact.items():
            assert f"{number:,} {state}" in shown or (state == "ignored" and number == 0)


def test_a_page_in_a_browser(inside: Path, browser: Browser) -> None:
    inspect("--output", str(inside / "page.html"))
    browser.requests.clear()
    browser.open((inside / "page.html").as_uri())
    browser.evaluate("articles.forEach(show)")

    # What the data hold is text: it neither runs nor loads anything.
    assert browser.evaluate("document.title") == "tiny/forgetting · scores"
    assert browser.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert set(browser.requests) <= {"about:blank", (inside / "page.html").as_uri()}
    assert ATTACK in browser.evaluate("document.getElementById('examples').textContent")

    # Characters of several tokens, whose signs are no text.
    assert "naïve\n🙂" in browser.evaluate("document.getElementById('examples').textContent")
    assert browser.evaluate("document.querySelectorAll('main .byte').length") > 0

    # Filter and search.
    visible = "articles.filter(article => article.offsetHeight).map(article => article.example.source)"
    sources = Counter(browser.evaluate(visible))
    browser.set("source", "noisy")
    assert Counter(browser.evaluate(visible)) == {"noisy": sources["noisy"]}
    browser.set("search", "NAÏVE")
    assert 0 < len(browser.evaluate(visible)) < sources["noisy"]
    browser.set("search", "")
    browser.set("source", "")

    # Order.
    browser.set("sort", "low")
    means = browser.evaluate("[...document.querySelectorAll('article')].map(article => article.example.mean)")
    assert means == sorted(means)
    browser.set("sort", "corpus")

    # Keys.
    browser.press("j")
    browser.press("j")
    assert browser.evaluate("document.activeElement === articles[1]")
    browser.press("k")
    browser.press("ArrowRight")
    detail = browser.evaluate("document.getElementById('detail').textContent")
    rank = next(value for value in rows(inside)[0]["metrics"]["rank"] if value is not None)
    assert f"rank {rank:,} of" in detail
    assert re.search(r"nll [\d.]+ base, [\d.]+ reference", detail)
    browser.press("/")
    assert browser.evaluate("document.activeElement.id") == "search"
    browser.press("Escape")
    browser.press("?")
    assert browser.evaluate("document.getElementById('help').open")

    # A phone.
    browser.resize(390, 800)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
