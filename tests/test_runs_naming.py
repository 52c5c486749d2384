"""Names of runs and references: a pure function of the command line and of the files that it names."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forgetting.arguments import assignment, flat, option_strings, overridden
from forgetting.errors import UserError
from forgetting.runs.naming import Naming, experiment_id, variant, with_variant

EXPERIMENT = """
model: {objective: {class_path: Forgetting, init_args: {t_min: 1.0e-4, t_max: 0.25}}}
data: {positive_fraction: 0.7}
"""
SMALL = "experiments/table3/small/forgetting-token.yaml"
FILES = {
    SMALL: EXPERIMENT,
    "experiments/table3/small/reference.yaml": "data: {split: reference}\n",
    "experiments/table9/borrower.yaml": EXPERIMENT.replace("data: {", "data: {reference: table3/small/reference, "),
    "mine.yaml": EXPERIMENT,
    "file-order.yaml": "data: {shuffle: false}\n",
    "half.yaml": "data: {positive_fraction: 0.5}\n",
    "trial.yaml": "trainer: {max_steps: 2}\n",
    "machine.yaml": "trainer: {devices: 4, precision: bf16-mixed}\ndata: {micro_batch_tokens: 16384}\n",
    "larger.yaml": "trainer: {devices: 4}\nmodel: {lora: {rank: 128}}\n",
    "fit.yaml": "run: {id: table3/small/ignoring@file-order}\n"
    + EXPERIMENT.replace("data: {", "data: {reference: table3/small/reference@file-order, "),
}
NEUTRAL = [
    ["--config", "machine.yaml"],
    ["--seed_everything", "7"],
    ["--trainer.devices=2", "--trainer.precision", "32-true", "--trainer.strategy=sharded"],
    ["--trainer", "{devices: 2}"],
    ["--trainer.logger=false", "--trainer.callbacks+=somewhere.Callback", "--trainer.callbacks.number=9"],
    ["--data.num_workers", "2", "--data.corpora=elsewhere", "--data.shard_size=8", "--data.micro_batch_tokens", "64"],
    ["--model.compile=true", "--model.attention=eager", "--model.activation_checkpointing=true"],
    ["--run.root=elsewhere", "--run.wandb", "{project: p}", "--run.checkpoint_every_n_steps=5", "--ckpt_path=last"],
]
NAMES = [  # options, what they add to the run's name, what they add to its reference's
    ([], "", ""),
    (["--config", "file-order.yaml"], "@file-order", "@file-order"),
    (["--config", "half.yaml"], "@half", ""),
    (["--config", "trial.yaml"], "@trial", ""),
    (["-c", "larger.yaml", "--config=half.yaml", "--config", "machine.yaml"], "@larger+half", "@larger"),
    (["--data.positive_fraction", "0.5"], "@positive_fraction=0.5", ""),
    (["--data.positive_fraction=0.50"], "@positive_fraction=0.5", ""),
    (["--data.positive_fraction", "all"], "@positive_fraction=all", ""),
    (["--data", "{positive_fraction: 0.5, num_workers: 2}"], "@positive_fraction=0.5", ""),
    (["--data.positive_fraction=null", "--data.threshold", "-0.5"], "@positive_fraction=null+threshold=-0.5", ""),
    (["--data.threshold=-1e-3"], "@threshold=-0.001", ""),
    (["--data.threshold=1e38"], "@threshold=1e38", ""),
    (["--data.granularity=sequence", "--data.scope", "example"], "@granularity=sequence+scope=example", ""),
    (["--data.score=Random", "--data.score.seed=3"], "@score=Random+seed=3", ""),
    (["--data.reference_seed", "5"], "@reference_seed=5", ""),
    (["--model.objective.t_max", "0.35"], "@t_max=0.35", ""),
    (["--model.objective.init_args.t_max=3.5e-1"], "@t_max=0.35", ""),
    (["--model.objective", "MeanNLL"], "@objective=MeanNLL", ""),
    (["--model.objective=forgetting.method.objectives.MeanNLL"], "@objective=MeanNLL", ""),
    (["--model.objective.class_path=my_package.Mine"], "@objective=Mine", ""),
    (["--model.objective={class_path: a.Mine, init_args: {beta: 2}}"], "@objective=Mine+beta=2", ""),
    (["--model.objective=a.Mine", "--model.objective.init_args.beta=2"], "@objective=Mine+beta=2", ""),
    (["--model.start=reference"], "@start=reference", ""),
    (["--model.learning_rate", "0.001"], "@learning_rate=0.001", "@learning_rate=0.001"),
    (["--model.gradient_clip=null"], "@gradient_clip=null", "@gradient_clip=null"),
    (["--data.shuffle=false"], "@shuffle=false", "@shuffle=false"),
    (["--model.lora.rank=4", "--data.max_length=48"], "@max_length=48+rank=4", "@max_length=48+rank=4"),
    (["--trainer.max_steps", "2"], "@max_steps=2", ""),
    (
        ["--config", "file-order.yaml", "--data.positive_fraction", "0.5", "--model.learning_rate=1e-3"],
        "@file-order+positive_fraction=0.5+learning_rate=0.001",
        "@file-order+learning_rate=0.001",
    ),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def naming(*options: str, file: str = SMALL) -> Naming:
    return Naming(["fit", "--config", file, *options])


@pytest.mark.parametrize(("options", "run", "reference"), NAMES, ids=lambda part: " ".join(part))
def test_overlays_and_overrides_are_in_the_name(options, run, reference):
    names = naming(*options)
    assert names.run_id == "table3/small/forgetting-token" + run
    assert names.reference_id == "table3/small/reference" + reference


@pytest.mark.parametrize("neutral", NEUTRAL, ids=" ".join)
@pytest.mark.parametrize("others", [[], ["--config", "file-order.yaml"]], ids=" ".join)
def test_where_and_how_a_run_is_computed_is_not_in_the_name(neutral, others):
    plain, names = naming(*others), naming(*others, *neutral)
    assert (names.run_id, names.reference_id) == (plain.run_id, plain.reference_id)
    assert naming(*others, *neutral, "--data.batch_size=8").run_id != plain.run_id  # control


@pytest.mark.parametrize(("options", "run", "reference"), NAMES, ids=lambda part: " ".join(part))
def test_the_command_line_of_the_reference_has_the_reference_s_name(options, run, reference):
    names = naming(*options, "--run.root=elsewhere", "--trainer.precision=32-true", "--run.id=x", "--seed_everything=3")
    arguments = names.arguments_for_reference()
    made = Naming(["fit", *arguments])
    assert made.is_reference
    assert made.run_id == made.reference_id == names.reference_id
    assert made.seed == names.config["data"]["reference_seed"]
    assert {"--run.root=elsewhere", "--trainer.precision=32-true"} < set(arguments)
    assert Naming(["score", *made.arguments_for_reference()]).run_id == made.run_id


def test_a_reference_does_not_depend_on_the_method():
    file = "experiments/table3/small/reference.yaml"
    names = naming("--config", "half.yaml", "--data.threshold=1", "--model.objective=X", file=file)
    assert names.run_id == names.reference_id == "table3/small/reference"
    assert naming("--trainer.max_steps=2", file=file).run_id == "table3/small/reference@max_steps=2"


def test_a_reference_is_named_by_the_experiment_or_lies_beside_it():
    names = naming("--model.learning_rate=0.1", file="experiments/table9/borrower.yaml")
    assert names.reference_id == "table3/small/reference@learning_rate=0.1"
    assert names.command_for_reference("fit") == (
        "python -m forgetting fit --config experiments/table3/small/reference.yaml --model.learning_rate=0.1"
    )
    names = naming(file="mine.yaml")
    assert (names.run_id, names.reference_id, names.reference_file) == ("mine", "reference", Path("reference.yaml"))


def test_a_reference_that_is_given_is_taken_as_it_is():
    options = ["--config", "file-order.yaml", "--config", "machine.yaml", "--model.learning_rate=0.1"]
    names = naming(*options, "--data.reference=table3/small/reference", file="experiments/table9/borrower.yaml")
    assert names.reference_id == "table3/small/reference"
    assert names.arguments_for_reference() == [
        "--config", "experiments/table3/small/reference.yaml", "--config", "machine.yaml",
    ]  # fmt: skip


def test_a_saved_configuration_keeps_its_names():
    names = naming(file="fit.yaml")
    assert names.run_id == "table3/small/ignoring@file-order"
    assert names.reference_id == "table3/small/reference@file-order"
    assert names.reference_file == Path("runs/table3/small/reference@file-order/seed-0/fit.yaml")
    names = naming("--run.root=again", "--model.learning_rate=0.1", "--data.threshold=1", file="fit.yaml")
    assert names.run_id == "table3/small/ignoring@file-order+threshold=1+learning_rate=0.1"
    assert names.reference_id == "table3/small/reference@file-order+learning_rate=0.1"
    assert names.reference_file.parts[0] == "runs"


def test_an_id_is_taken_as_it_is():
    assert naming("--run.id", "my/own", "--data.threshold=1").run_id == "my/own"
    assert naming("--run", "{id: my/own}").run_id == "my/own"
    assert naming("--run.id=null", "--data.threshold=1").run_id == "table3/small/forgetting-token@threshold=1"


def test_seeds():
    assert naming("--seed_everything=3").seed == 3
    file = "experiments/table3/small/reference.yaml"
    assert naming("--seed_everything=3", "--data.reference_seed=4", file=file).seed == 4
    with pytest.raises(UserError, match="must be a whole number"):
        naming("--seed_everything=true")


def test_commands_say_what_was_typed():
    names = naming("--config", "file-order.yaml", "--data.positive_fraction", "0.5", "--model.adapter=a b")
    assert names.command("score") == (
        f"python -m forgetting score --config {SMALL} --config file-order.yaml --data.positive_fraction 0.5 "
        "'--model.adapter=a b'"
    )
    assert names.command_for_reference("score") == (
        "python -m forgetting score --config experiments/table3/small/reference.yaml --config file-order.yaml "
        "'--model.adapter=a b'"
    )


# --- properties -----------------------------------------------------------------------------------------------------

PURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
OVERRIDES = {
    "--data.positive_fraction": "0.5", "--data.batch_size": "8", "--model.lora.rank": "4", "--model.lora.alpha": "8",
    "--model.objective": "Mine", "--data.corpus": "{seed: 1}", "--trainer.max_epochs": "2", "--data.shuffle": "false",
}  # fmt: skip


@PURE
@given(st.permutations(list(OVERRIDES)), st.sampled_from(NEUTRAL[1:]), st.integers(0, len(OVERRIDES)))
def test_neither_order_nor_neutral_overrides_matter(order, neutral, at):
    def name(keys, inserted=()):
        options = [f"{key}={OVERRIDES[key]}" for key in keys]
        return naming(*options[:at], *inserted, *options[at:])

    plain, names = name(OVERRIDES), name(order, neutral)
    assert (names.run_id, names.reference_id) == (plain.run_id, plain.reference_id)


TEXTS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[a-z0-9./+=@, _-]{0,8}", fullmatch=True),
    st.sampled_from(["null", "true", "5", "5.0", "1e3", "inf", ".inf", "-.inf", "nan", "None", "True", "", "-", "~"]),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=3), st.dictionaries(TEXTS, LEAVES, max_size=3))


def _kind(value: Any) -> Any:
    """Equality that tells 1, 1.0 and True apart, and 0.0 from -0.0."""
    return repr(value) if not isinstance(value, dict) else sorted((k, repr(v)) for k, v in value.items())


@settings(max_examples=400)
@example("?", None)
@given(VALUES, VALUES)
def test_different_values_never_share_a_name(left, right):
    names = [variant([], {"data.key": value}) for value in (left, right)]
    assert (names[0] == names[1]) == (_kind(left) == _kind(right))
    for name in names:
        assert name.startswith("key=")
        assert len(name) <= 100
        assert "/" not in name
        assert name.isascii()


@PURE
@given(st.lists(st.sampled_from(["overlay-a", "b", "c=1", "d+e"]), max_size=4, unique=True))
def test_names_of_overlays_keep_their_order_and_never_merge(stems):
    assert (variant(stems, {}) == variant(["d", "e"], {})) is False
    assert (variant(stems, {}) == variant([], {"c": 1})) is False
    assert variant(stems, {}) == variant(stems[::-1], {}) or len(stems) > 1


def test_a_long_variant_is_told_apart_by_its_hash():
    names = {variant([], {f"model.some_rather_long_key_{i}": value for i in range(9)}) for value in (1, 2)}
    assert len(names) == 2
    assert all(len(name) <= 100 for name in names)
    assert with_variant("a@b", "c") == "a@b+c"
    assert with_variant("a", "") == "a"


def test_experiment_ids_follow_the_innermost_folder():
    assert experiment_id(Path("/a/experiments/table9/x/y.yaml")) == "table9/x/y"
    assert experiment_id(Path("/experiments/b/experiments/table9/y.yaml")) == "table9/y"
    assert experiment_id(Path("mine.yaml")) == "mine"


# --- the configuration as plain data --------------------------------------------------------------------------------

SPELLINGS = [
    [],
    ["--config", "file-order.yaml", "--config", "larger.yaml"],
    ["--model.lora", "{rank: 4}"],
    ["--model.lora.target_modules+", "q", "--model.lora.target_modules+=k"],
    ["--model.objective", "MeanNLL"],
    ["--model.objective=Forgetting", "--model.objective.t_max=0.3"],
    ["--model.objective", "{class_path: Forgetting, init_args: {t_max: 4e-1}}"],
    ["--model.objective.init_args", "{t_max: 0.4}"],
    ["--model.objective.init_args.t_max", "4e-1"],
    ["--model.objective.class_path", "forgetting.method.objectives.Forgetting"],
    ["--data.corpus.sources", "{a: {path: y.jsonl, prompt: '{q}', response: '{a}'}}"],
    ["--data.corpus.sources.a", "{path: y.jsonl, prompt: '{q}', response: '{a}'}"],
    ["--config", "sources.yaml"],
    ["--data.corpus", "{seed: 3}"],
    ["--data", "data.yaml"],
    ["--data", "{positive_fraction: 0.3}", "--data.threshold=-1e-3"],
    ["--data.threshold", "-0.5", "--data.positive_fraction=null"],
    ["--run.wandb", "{project: a}"],
    ["--run.wandb.project", "a"],
    ["--trainer.max_steps=5", "--trainer.num_nodes", "2"],
]


@pytest.mark.parametrize("options", SPELLINGS, ids=" ".join)
def test_the_merged_configuration_is_the_parsed_one(options):
    """Every key that files and overrides name has the value that jsonargparse gives it."""
    from jsonargparse import capture_parser

    from forgetting.cli import build_cli

    Path("data.yaml").write_text("positive_fraction: 0.4\nbatch_size: 3\n")
    Path("sources.yaml").write_text("data: {corpus: {sources: {b: {path: z.jsonl, messages: m}}}}\n")
    arguments = ["fit", "--config", SMALL, *options]
    parser = capture_parser(lambda: build_cli(arguments))
    parsed = flat(yaml.safe_load(parser.dump(parser.parse_args(arguments), skip_unset=False))["fit"])
    ours = flat(Naming(arguments).config)
    for key, value in ours.items():
        expected = parsed[key]
        if key.endswith("class_path"):
            value, expected = value.rsplit(".", 1)[-1], expected.rsplit(".", 1)[-1]
        assert value == expected, key


def test_options_have_one_spelling():
    typed = [
        "-cx.yaml",
        "--config",
        "y.yaml",
        "--a.b",
        "-0.5",
        "--c=d=e",
        "--f+",
        "g",
        "--config=z.yaml",
        "-c",
        "w.yaml",
    ]
    assert option_strings(typed) == ["--a.b=-0.5", "--c=d=e", "--f+=g"]
    assert assignment("--a.b=-0.5") == ("a.b", -0.5)
    assert assignment("--a={b") == ("a", "{b")
    with pytest.raises(UserError, match="--a has no value: --a=VALUE was expected"):
        overridden({}, ["--a"])
