import pytest
import yaml
from jsonargparse import ArgumentParser

from forgetting.corpus.configuration import CorpusConfig, Source, columns_of, template_columns
from forgetting.errors import UserError


def alpaca(**changes: object) -> Source:
    return Source(**{"name": "Alpaca", "path": "a.json", "prompt": "{instruction}", "response": "{output}", **changes})  # type: ignore[arg-type]


def test_yaml_with_every_kind_of_source_is_read_by_the_command_line() -> None:
    parser = ArgumentParser()
    parser.add_argument("--corpus", type=CorpusConfig)
    text = """
    sources:
      Alpaca:
        path: a.json
        prompt: "{instruction}\\n\\n{input}"
        prompt_without_input: "{instruction}"
        response: "{output}"
      OASST: {path: [a.jsonl, b.jsonl], tree: prompt, languages: [en], top_replies: null}
      Wizard: {path: org/wizard, conversations: conversations, revision: main, size: 10}
    reference: {path: org/published, split: reference, messages: messages}
    num_train: 10
    """
    config = parser.instantiate_classes(parser.parse_object({"corpus": yaml.safe_load(text)})).corpus
    config.check()
    assert isinstance(config, CorpusConfig)
    assert config.sources["Alpaca"].prompt == "{instruction}\n\n{input}"
    assert config.sources["OASST"].top_replies is None
    assert config.sources["Wizard"].top_replies == 1
    assert [source.name for source in config.all_sources()] == ["Alpaca", "OASST", "Wizard", "reference"]
    assert config.drawn() == {"train": 10, "validation": 1000}
    assert isinstance(config.reference, Source)


def test_every_field_has_a_line_of_help() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Source, "source")
    parser.add_class_arguments(CorpusConfig, "corpus")
    text = " ".join(parser.format_help().split())
    assert "Subset of a hub data set" in text
    assert "decides every draw" in text


def test_an_unknown_key_is_refused() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--corpus", type=CorpusConfig)
    with pytest.raises(Exception, match="nm_train"):
        parser.parse_object({"corpus": {"nm_train": 3}})


def test_template_literal_braces_and_odd_names() -> None:
    assert columns_of("{{x}} {my column}{b}") == ["my column", "b"]
    assert template_columns("{{{a}}}") == [("{", "a"), ("}", None)]


@pytest.mark.parametrize("name", ["a!r", "Question: long", "a:>10", "a.b[0]", "a:b!c"])
def test_what_stands_in_braces_is_a_name_as_it_is(name: str) -> None:
    assert template_columns("x{" + name + "}y") == [("x", name), ("y", None)]


@pytest.mark.parametrize("template", ["{}", "{a", "a}", "{a{b}}", "{a:{b}}", "{{a}"])
def test_templates_insert_text_and_do_nothing_else(template: str) -> None:
    with pytest.raises(UserError, match=r"literal brace"):
        template_columns(template)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response": None}, "response is missing; prompt and response go together"),
        ({"messages": "messages"}, "found prompt/response and messages, expected exactly one"),
        ({"prompt": None, "response": None}, "found no mapping, expected exactly one"),
        ({"prompt": "no column"}, "names no column"),
        ({"size": 0}, "size is 0; expected at least 1"),
        ({"path": ""}, "path is empty"),
        ({"name": " "}, "empty name"),
        ({"name": "a\nb"}, "control character"),
        ({"name": "\x1b[31m"}, "control character"),
        ({"name": "\ud800"}, "control character"),
        ({"prompt": "\ud800{instruction}"}, "no valid Unicode"),
        ({"unused_columns": ["\ud800"]}, "no valid Unicode"),
        ({"languages": ["en"]}, "languages belongs to tree only"),
        ({"prompt_without_input": "{instruction} {input}"}, "must name fewer columns"),
        (
            {"prompt": None, "response": None, "tree": "prompt", "system": "x"},
            "system belongs to prompt and response only",
        ),
    ],
)
def test_a_contradictory_source_is_refused(changes: dict[str, object], message: str) -> None:
    alpaca().check()
    with pytest.raises(UserError, match=message):
        alpaca(**changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num_train is 0; expected at least 1"),
        ({"num_reference": -1}, "num_reference is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"sources": {"a": alpaca(), "b": alpaca()}}, "'Alpaca' is given twice"),
        ({"sources": {}}, "sources is empty, but train, reference, validation must be drawn"),
        (
            {"sources": {}, "train": alpaca(), "reference": alpaca()},
            "but validation must be drawn.*num_validation to 0",
        ),
    ],
)
def test_an_impossible_corpus_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CorpusConfig(**{"sources": {"alpaca": alpaca()}, **changes}).check()  # type: ignore[arg-type]


def test_published_splits_need_no_sources() -> None:
    CorpusConfig(train=alpaca(), reference=alpaca(), num_validation=0).check()
