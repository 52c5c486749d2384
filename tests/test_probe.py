"""The probe: planted splits that the ordinary pipeline takes, held-out pairs for the harness, and the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import byte_tokenizer
from small_experiment import METHOD, REFERENCE, write_experiments
from transformers import AutoModelForCausalLM

from forgetting.cli import main
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.corpus.templates import template_for
from forgetting.corpus.tokens import tokenize_corpus
from forgetting.errors import UserError
from forgetting.evaluation.suite import load_suite
from forgetting.inspection.probe_measures import CANDIDATES, ProbeReport, measure_probe
from forgetting.inspection.probe_report import probe_text
from forgetting.method.scores import Combination, LossReduction, PromptFit, StoredTokens
from forgetting.method.selection import Selection
from forgetting.method.store import ShardRange, StoredSplit, write_shard
from forgetting.planting.probe import Planting, write_probe
from forgetting.planting.tasks import documents

RATES = {"answer": 0.1, "entities": 0.2, "phrases": 0.1, "words": 0.2}
SENTENCES = [
    "In 1848 the treaty was signed by Nicholas Trist in Mexico, after long talks between both sides.",
    "The river Danube flows from Germany through Vienna to the sea, and many boats travel along it.",
    "Whisk four eggs with sugar and butter, add flour slowly, and bake the cake for 25 minutes.",
    "Plants make sugar from light, as Jan Ingenhousz found in 1779 with leaves under water.",
]


# --- the score ---


def stored(base: list[float], reference: list[float], lengths: list[int], first: int = 0) -> StoredTokens:
    columns = {"nll_base": np.array(base, np.float32), "nll_reference": np.array(reference, np.float32)}
    return StoredTokens("train", first, np.array(lengths), columns)


def test_a_combination_is_a_weighted_sum_and_by_default_q():
    tokens = stored([3.0, 1.0, 2.0], [1.0, 1.5, 0.5], [2, 1])
    np.testing.assert_array_equal(Combination()(tokens), LossReduction()(tokens))
    np.testing.assert_array_equal(Combination(-1.0, 0.0)(tokens), [-3.0, -1.0, -2.0])
    np.testing.assert_array_equal(Combination(1.0, -2.0)(tokens), [1.0, -2.0, 1.0])


def test_a_window_averages_over_neighbors_in_the_same_response():
    tokens = stored([1.0, 2.0, 6.0, 100.0, 200.0], [0.0] * 5, [3, 2])
    np.testing.assert_allclose(Combination(1.0, 0.0, 1)(tokens), [1.5, 3.0, 4.0, 150.0, 150.0])
    np.testing.assert_allclose(Combination(1.0, 0.0, 9)(tokens), [3.0, 3.0, 3.0, 150.0, 150.0])


def test_a_smoothed_score_depends_on_nothing_but_its_example():
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 40, 50)
    values = draw.exponential(3, (2, lengths.sum()))
    whole = Combination(1.0, -0.7, 3)(stored(list(values[0]), list(values[1]), list(lengths)))
    ends = np.cumsum(lengths)
    for first, last, length in zip(ends - lengths, ends, lengths, strict=True):
        alone = stored(list(values[0, first:last]), list(values[1, first:last]), [int(length)], int(first))
        np.testing.assert_array_equal(Combination(1.0, -0.7, 3)(alone), whole[first:last])


@pytest.mark.parametrize("settings", [{"base": 0.0, "reference": 0.0}, {"base": float("nan")}, {"window": -1}])
def test_a_combination_that_says_nothing_is_refused(settings: dict[str, float]):
    with pytest.raises(UserError, match=r"data\.score has the w"):
        Combination(**settings)


def test_prompt_fit_is_what_the_prompt_explains_up_to_a_cap_less_the_loss_around():
    columns = {"nll_base": np.array([1.0, 2.0, 6.0, 1.0, 1.0]), "nll_promptless": np.array([2.0, 3.0, 7.0, 1.1, 1.3])}
    tokens = StoredTokens("train", 0, np.array([3, 2]), {k: v.astype(np.float32) for k, v in columns.items()})
    expected = [2 * 0.5 - 1.5, 2 * 0.5 - 3.0, 2 * 0.5 - 4.0, 2 * 0.2 - 1.0, 2 * 0.2 - 1.0]
    np.testing.assert_allclose(PromptFit(2.0, 0.5, 1)(tokens), expected, rtol=1e-6)
    assert len(PromptFit()(StoredTokens("train", 0, np.zeros(0, np.int64), dict.fromkeys(columns, np.zeros(0))))) == 0
    with pytest.raises(UserError, match="expected a finite weight of at least 0, a cap above 0"):
        PromptFit(cap=0.0)


# --- the folder ---


def write_source(folder: Path, number: int = 200) -> Path:
    rows = [{"question": f"Question {n}?", "answer": f"{SENTENCES[n % 4]} Case {n}."} for n in range(number)]
    file = folder / "clean.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def clean_corpus(folder: Path, **sizes: int) -> Corpus:
    source = Source(str(write_source(folder)), prompt="{question}", response="{answer}", name="made")
    sizes = {"num_train": 100, "num_reference": 30, "num_validation": 40} | sizes
    return prepare_corpus(CorpusConfig({"made": source}, **sizes), folder / "corpora")


PLANTING = Planting(RATES, 0, "tulu", 400)


def test_the_planted_splits_are_an_experiments_corpus_and_every_noisy_character_is_in_a_noisy_token(tmp_path: Path):
    corpus = clean_corpus(tmp_path)
    tokenizer = byte_tokenizer()
    probe = write_probe(corpus, PLANTING, tokenizer, tmp_path / "probe")
    assert probe.counts["train"] == {"answer": (10, 10), "entities": (20, 20), "phrases": (10, 10), "words": (20, 20)}
    overlay = yaml.safe_load(probe.overlay.read_text())["data"]["corpus"]
    planted = prepare_corpus(
        CorpusConfig(
            num_validation=0, **{split: Source(**overlay[split]) for split in ("train", "reference", "validation")}
        ),
        tmp_path / "corpora",
    )
    for split in ("train", "reference", "validation"):
        before, after = corpus.split(split), planted.split(split)
        changed = [a["messages"] != b["messages"] for a, b in zip(before, after, strict=True)]
        assert sum(changed) == (0 if split == "validation" else sum(n for n, _ in probe.counts[split].values()))
        assert list(after["source"]) == list(before["source"])
    tokens = tokenize_corpus(planted, tokenizer, "tulu", 400)
    train = tokens.split("train")
    rows = [json.loads(line) for line in (tmp_path / "probe/train.jsonl").read_text().splitlines()]
    noise = np.asarray(train.noise)
    # A token of this tokenizer is a byte, so the tokens of each kind are as many as the bytes of its spans.
    for code, kind in enumerate(tokens.noise_kinds, start=1):
        spans = [(row["messages"][-1]["content"], span) for row in rows for span in row["noise"] if span[2] == kind]
        expected = sum(len(text[start:end].encode()) for text, (start, end, _) in spans)
        # The template strips a response's end: a space there has no token.
        stripped = sum(len(text[start:end]) - len(text.rstrip()[start:end]) for text, (start, end, _) in spans)
        assert (noise == code).sum() == expected - stripped > 0


def test_the_clean_twins_are_the_same_rows_by_another_column(tmp_path: Path):
    corpus = clean_corpus(tmp_path)
    probe = write_probe(corpus, PLANTING, byte_tokenizer(), tmp_path / "probe")
    source = yaml.safe_load(probe.overlay.read_text())["data"]["corpus"]["reference"] | {"messages": "clean"}
    del source["noise"]
    clean = prepare_corpus(
        CorpusConfig(num_validation=0, num_reference=0, train=Source(**source)), tmp_path / "corpora"
    )
    assert list(clean.split("train")["messages"]) == list(corpus.split("reference")["messages"])


def test_the_same_probe_is_left_and_another_is_refused(tmp_path: Path):
    corpus, tokenizer, folder = clean_corpus(tmp_path), byte_tokenizer(), tmp_path / "probe"
    probe = write_probe(corpus, PLANTING, tokenizer, folder)
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    again = write_probe(corpus, PLANTING, tokenizer, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == written
    assert {kind: tuple(n) for kind, n in again.counts["train"].items()} == probe.counts["train"]
    with pytest.raises(UserError, match="holds a probe that was made with other settings"):
        write_probe(corpus, Planting(RATES, 1, "tulu", 400), tokenizer, folder)
    with pytest.raises(UserError, match="holds a probe that was made with other settings"):
        write_probe(corpus, PLANTING, byte_tokenizer(bos=False), folder)
    file = folder / "train.jsonl"
    file.write_text(file.read_text().replace("Danube", "Donube", 1))
    with pytest.raises(UserError, match=r"train\.jsonl was changed or damaged"):
        write_probe(corpus, PLANTING, tokenizer, folder)


# --- the held-out pairs ---


def test_pairs_that_do_not_fit_and_rows_without_noise_are_left_out():
    def row(response: str, noisy: str) -> dict:
        messages = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": response}]
        spans = [] if noisy == response else [[0, len(noisy), "words"]]
        return {"messages": [messages[0], {**messages[1], "content": noisy}], "clean": messages, "noise": spans}

    tokenizer = byte_tokenizer()
    rows = [
        row("Hello.", "Olleh."),
        row("Hello.", "Hello."),
        row("Hello.", "Olleh." * 40),
        row("Hello." * 40, "Olleh."),
    ]
    found = documents(rows, template_for("tulu", tokenizer), tokenizer, 60)
    assert [(d["prompt"], d["clean"], d["pair"]) for d in found] == [
        ("<|user|>\nHi?\n<|assistant|>\n", "Hello.", ["\nHello.", "\nOlleh.", "\n"])
    ]
    assert (found[0]["clean_tokens"], found[0]["noised_tokens"], found[0]["kind"]) == (6, 6, "words")


def test_the_harness_measures_nll_and_uptake_as_the_model_gives_them(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, "backbone")
    write_probe(clean_corpus(tmp_path), Planting(RATES, 0, "tulu", 250), byte_tokenizer(), Path("probe"))
    main(["evaluate", "backbone", "--suite", "probe/suite.yaml", "--device", "cpu", "--quiet", "--output", "results"])
    columns = json.loads(Path("results/results.probe.json").read_text())["columns"]
    pairs = [json.loads(line) for line in Path("probe/tasks/planted_clean.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained("backbone").eval()
    tokenizer = byte_tokenizer()

    def nll(prompt: str, response: str) -> float:
        assert prompt.endswith("\n")  # which the harness moves to the response, and the metric takes off again
        before, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + response))
        with torch.no_grad():
            losses = -model(torch.tensor([whole])).logits.log_softmax(-1)[0]
        return sum(float(losses[n - 1, whole[n]]) for n in range(len(before), len(whole)))

    clean = [nll(d["prompt"], d["clean"]) / d["clean_tokens"] for d in pairs]
    noised = [nll(d["prompt"], d["pair"][1].lstrip()) / d["noised_tokens"] for d in pairs]
    assert columns["nll"]["value"] == pytest.approx(100 * np.mean(clean), rel=1e-4)
    for kind in RATES:
        expected = np.mean([c - n for c, n, d in zip(clean, noised, pairs, strict=True) if d["kind"] == kind])
        assert columns[f"uptake/{kind}"]["value"] == pytest.approx(100 * expected, rel=1e-3, abs=1e-3)
    assert columns["stock phrases"]["value"] == 0


def test_a_pair_whose_response_the_template_hides_is_left_out():
    """With `{% generation %}` around more than the message, `A` stands twice in the turn `Answer: A`."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}Answer: {{ m.content }}{% endgeneration %}"
        "{% else %}Ask: {{ m.content }}\n{% endif %}{% endfor %}"
    )
    prompt = {"role": "user", "content": "Hi?"}
    rows = [
        {"clean": [prompt, {"role": "assistant", "content": clean}], "noise": [[0, 1, "answer"]],
         "messages": [prompt, {"role": "assistant", "content": "Berlin."}]}
        for clean in ("A", "Paris.")
    ]  # fmt: skip
    found = documents(rows, template_for("chat", tokenizer), tokenizer, 60)
    assert [(d["prompt"], d["clean"], d["pair"]) for d in found] == [
        ("Ask: Hi?\nAnswer: ", "Paris.", [" Paris.", " Berlin.", " "])
    ]


@pytest.mark.parametrize(("folder", "name"), [("one/my probe.v2", "my-probe-v2"), ("p" * 100, "p" * 60)])
def test_a_probe_s_suite_has_a_name_that_its_results_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
):
    monkeypatch.chdir(tmp_path)
    write_probe(clean_corpus(tmp_path), Planting(RATES, 0, "tulu", 250), byte_tokenizer(), Path(folder))
    assert load_suite(f"{folder}/suite.yaml").name == name


def test_a_stock_phrase_is_known_by_its_first_words():
    from forgetting.planting.kinds import OPENINGS
    from forgetting.planting.metrics import stock_phrase

    doc = {"openings": [" ".join(opening.lower().split()[:3]) for opening in OPENINGS]}
    assert len(set(doc["openings"])) == len(OPENINGS)
    for opening in OPENINGS:
        assert stock_phrase(doc, [f" {opening}Paris."]) == {"stock_phrase": 1.0}
    assert stock_phrase(doc, ["Paris. That is a great question!"]) == {"stock_phrase": 0.0}


# --- the command ---


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probed")
    write_experiments(folder)
    write_source(folder, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["probe", "--config", METHOD, *SOURCES, *SIZES, *GIVEN])
    return folder


SOURCES = ["--data.corpus.sources", "{made: {path: clean.jsonl, prompt: '{question}', response: '{answer}'}}"]
SIZES = ["--train", "120", "--reference", "30", "--held-out", "20"]
GIVEN = ["--rates", json.dumps(RATES), "--data.max_length", "200"]


def report(folder: Path) -> dict:
    return json.loads((folder / "probe/report.json").read_text())


def test_the_report_has_every_score_with_every_reference_and_controls_that_hold(probed: Path):
    content = report(probed)
    rows = {(row["score"], row["reference"]): row for row in content["scores"]}
    for candidate in CANDIDATES:
        references = ("noisy", "clean") if candidate.reads_reference else (None,)
        assert all((candidate.name, reference) in rows for reference in references)
    random, oracle = rows["random (control)", None], rows["known noise (control)", None]
    assert random["noise"]["auc"]["low"] < 0.5 < random["noise"]["auc"]["high"]
    assert random["noise"]["precision"]["value"] == pytest.approx(random["noise_fraction"], abs=0.03)
    for detected in (oracle["noise"], *oracle["kinds"].values()):
        assert detected["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert detected["average_precision"]["value"] == 1.0
    assert set(oracle["kinds"]) == set(RATES)
    assert content["planted"]["train"]["words"] == [24, 24]
    (agreement,) = content["agreement"]
    assert 0.5 < agreement["spearman"] <= 1
    assert 0 <= agreement["changed"] < 0.5


def test_a_score_without_boilerplate_takes_its_penalty_from_what_recurs_in_an_experiment(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(probed)
    settings = {"score": {"class_path": "LossReduction"}, "share": 0.2, "penalty": 1000.0}
    score = json.dumps({"class_path": "NoBoilerplate", "init_args": settings})
    out = ["--jsonl", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "page.html")]
    main(["inspect", "--config", METHOD, "--config", "probe/probe.yaml", *GIVEN[2:], "--data.score", score, *out])
    scores, responses = [], []
    for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines()):
        scored = [(t, s) for t, s in zip(row["tokens"], row["metrics"]["score"], strict=True) if s is not None]
        responses.append(tuple(token for token, _ in scored))
        scores.append([value for _, value in scored])
    said: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for response in responses:
        for first in range(len(response) - 4):
            said.setdefault(response[first : first + 5], set()).add(response)
    penalized = expected = 0
    for response, values in zip(responses, scores, strict=True):
        for place, value in enumerate(values):
            around = [response[n : n + 5] for n in range(max(place - 4, 0), min(place + 1, len(response) - 4))]
            recurs = any(len(said[five] - {response}) / len(set(responses)) >= 0.2 for five in around)
            assert (value < -500) == recurs
            penalized, expected = penalized + recurs, expected + 1
    assert 0 < penalized < expected


def test_q_in_the_report_is_the_stores(probed: Path):
    """Its area and its negatives, computed here from the columns and from the file of planted rows."""
    from scipy.stats import rankdata

    from forgetting.method.store import ScoreStore

    (folder,) = (f for f in (probed / "runs/tiny").glob("reference@*") if "messages=clean" not in f.name)
    split = ScoreStore.open(folder / "seed-0/scores").split("train")
    q = split.column("nll_base") - split.column("nll_reference")
    rows = [json.loads(line) for line in (probed / "probe/train.jsonl").read_text().splitlines()]
    noise = []
    for row, number in zip(rows, split.num_targets(), strict=True):
        text = row["messages"][-1]["content"].strip()
        flags = np.zeros(number, bool)  # bytes, then EOS (and a newline)
        assert text.isascii()
        for start, end, _ in row["noise"]:
            flags[start : min(end, len(text), number)] = True
        noise.append(flags)
    is_noise = np.concatenate(noise)
    ranks = rankdata(q)
    area = 1 - (ranks[is_noise].sum() - is_noise.sum() * (is_noise.sum() + 1) / 2) / is_noise.sum() / (~is_noise).sum()
    row = next(r for r in report(probed)["scores"] if r["score"] == CANDIDATES[0].name and r["reference"] == "noisy")
    assert row["noise"]["num_tokens"] == is_noise.sum()
    assert row["noise"]["auc"]["value"] == pytest.approx(area, abs=1e-9)
    threshold = np.sort(q)[::-1][round(0.7 * len(q)) - 1]
    assert row["noise"]["recall"]["value"] == pytest.approx((q[is_noise] < threshold).mean(), abs=0.01)


def test_the_command_runs_nothing_twice_and_says_it_in_words(
    probed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(probed)
    trained = {file: file.stat().st_mtime_ns for file in probed.rglob("adapter_model.safetensors")}
    assert len(trained) == 2
    main(["probe", "--config", METHOD, *SOURCES, *SIZES, *GIVEN])
    assert {file: file.stat().st_mtime_ns for file in probed.rglob("adapter_model.safetensors")} == trained
    said = capsys.readouterr().out
    assert "With the noisy reference, Q " in said
    assert "of tokens drawn at random it would be" in said
    assert said.count("| Q (the paper's)") == 2
    assert (probed / "probe/report.md").read_text() in said


@pytest.mark.slow
def test_a_reference_experiment_and_one_that_selects_nothing_are_probed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_experiments(tmp_path)
    write_source(tmp_path)
    monkeypatch.chdir(tmp_path)
    some = ["--train", "60", "--reference", "12", "--held-out", "0", *GIVEN]
    main(["probe", "--config", REFERENCE, *SOURCES, *some])
    assert "(ρ 0.7)" in capsys.readouterr().out
    main(
        [
            "probe",
            "--config",
            METHOD,
            *SOURCES,
            *some,
            "--data.positive_fraction",
            "all",
            "--model.objective",
            "MeanNLL",
        ]
    )
    assert "(ρ 0.7)" in capsys.readouterr().out
    assert not (tmp_path / "probe/suite.yaml").exists()


def test_without_noise_there_is_nothing_to_find_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_experiments(tmp_path)
    write_source(tmp_path)
    monkeypatch.chdir(tmp_path)
    some = ["--train", "40", "--reference", "12", "--held-out", "10", "--rates", "{words: 0.0}"]
    main(["probe", "--config", METHOD, *SOURCES, *some])
    assert "No noise was planted, so there is nothing to find" in capsys.readouterr().out
    assert all(row["noise"]["auc"]["value"] is None for row in report(tmp_path)["scores"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "{words: 2}"], "The rate of words is 2"),
        (["--rates", "words"], "a mapping of kinds to shares was expected"),
        (["--rates", "{typos: 0.1}"], "no noise of the kind 'typos'"),
        (["--seed", "-1"], "--seed is -1"),
        (["--train", "0"], "num_train is 0"),
        (["--train", "5000"], "5,000"),
        (["--reference", "0"], "--reference is 0"),
        (["--held-out", "x"], "invalid int value"),
        (["--data.corpus.sources.made.response", "{reply}"], "reply"),
        (
            ["--data.corpus.train", "{path: x.jsonl, messages: m}"],
            "published split .data.corpus.train.*set data.corpus",
        ),
    ],
)
def test_wrong_input_is_one_error_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_experiments(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(["probe", "--config", METHOD, *options])
    assert not (tmp_path / "probe").exists()
    assert not (tmp_path / "runs").exists()


def test_an_experiment_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="experiment"):
        main(["probe"])


# --- the measures ---


def planted_store(folder: Path, noisy: list[int], clean: list[int], q: float | None = None) -> StoredSplit:
    """Responses of these lengths, the whole of each noisy or clean; Q the same of all tokens, or drawn."""
    lengths = np.array([*noisy, *clean])
    shard = ShardRange("train", 0, 0, len(lengths))
    base = np.random.default_rng(0).integers(100, 300, lengths.sum()) / 64  # so that Q is not rounded
    reference = base - q if q is not None else np.random.default_rng(1).normal(3, 0.5, lengths.sum())
    write_shard(folder, shard, {}, lengths, {"nll_base": base, "nll_reference": reference, "nll_promptless": base})
    is_noise = np.repeat(np.arange(len(lengths)) < len(noisy), lengths)
    extra = {"noise": is_noise.astype(np.uint8), "recurrence": np.zeros(lengths.sum(), np.float32)}
    return StoredSplit("train", [folder / shard.file], [0], extra)


def measured(store: StoredSplit, **selection: float | str) -> ProbeReport:
    counts = {"train": {"answer": (1, 1)}, "reference": {"answer": (1, 1)}}
    return measure_probe({"noisy": store}, ["answer"], Selection(**selection), counts, 0, 0)  # type: ignore[arg-type]


def test_a_rank_within_the_response_knows_nothing_of_its_length(tmp_path: Path):
    """A noisy response is short, a clean one long: n ranks of n are on average (n + 1) / 2n, which would tell."""
    found = measured(planted_store(tmp_path, [3] * 200, [60] * 200, q=0.25))
    assert found.of("Q, within the response", "noisy").noise.auc.value == 0.5
    assert found.of("random, within the response (control)", "noisy").noise.auc.value == pytest.approx(0.5, abs=0.03)


def test_of_too_few_noisy_examples_the_report_advises_nothing(tmp_path: Path):
    few = probe_text(measured(planted_store(tmp_path / "few", [9] * 6, [9] * 44, q=0.25)))
    assert "Too few examples have noise to say what this means for ρ" in few
    assert "do not select by it" not in few
    many = probe_text(measured(planted_store(tmp_path / "many", [9] * 20, [9] * 30, q=0.25)))
    assert "do not select by it" in many  # Q is the same everywhere


def test_the_report_says_which_tokens_are_negative(tmp_path: Path):
    store = planted_store(tmp_path, [10] * 20, [10] * 80)
    for selection, said in [
        ({"positive_fraction": 0.8}, "Negative are the lowest 20 % (ρ 0.8); of a kind"),
        (
            {"positive_fraction": 0.8, "scope": "example"},
            "Negative are the lowest 20 % of each response (ρ 0.8); of a kind",
        ),
        ({"forget_fraction": 0.05}, "Negative are the lowest 5 % (ρ 0.7, data.forget_fraction 0.05); of a kind"),
        (
            {"granularity": "sequence"},
            "Negative are the responses of the lowest means, with 30 % of the tokens (ρ 0.7, whole responses); of",
        ),
    ]:
        assert said in probe_text(measured(store, **selection))
