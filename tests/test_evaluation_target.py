import json
from pathlib import Path

import pytest

from forgetting.errors import UserError
from forgetting.evaluation.target import find_target


def write_run(folder: Path, base: str, weights: bool = True) -> Path:
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    if weights:
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "fit.yaml").write_text("model: {backbone: x, revision: abc, dtype: bfloat16}\n")
    return folder


def test_a_run_folder(tmp_path: Path, tiny_llama: Path) -> None:
    run = write_run(tmp_path / "run", str(tiny_llama))
    target = find_target(str(run))
    assert (target.kind, target.base, target.adapter, target.folder) == ("run", str(tiny_llama), run / "adapter", run)
    assert target.model_arguments(target.dtype) == {
        "pretrained": str(tiny_llama), "dtype": "bfloat16", "peft": str(run / "adapter"),
    }  # fmt: skip
    first = target.describe()
    (run / "adapter/adapter_model.safetensors").write_bytes(b"others")
    second = target.describe()
    assert first["base"] == second["base"]
    assert first["adapter"]["hash"] != second["adapter"]["hash"]


def test_a_run_on_a_hub_model_keeps_its_revision(tmp_path: Path) -> None:
    target = find_target(str(write_run(tmp_path / "run", "meta-llama/Llama-3.2-1B")))
    assert target.model_arguments(None)["revision"] == "abc"


def test_a_model_folder_and_a_hub_id(tiny_llama: Path) -> None:
    folder = find_target(str(tiny_llama))
    assert (folder.kind, folder.adapter, folder.dtype) == ("folder", None, None)
    hub = find_target("meta-llama/Llama-3.2-1B", revision="abc")
    assert hub.kind == "hub"
    assert hub.folder == Path("runs/base/meta-llama--Llama-3.2-1B")
    assert hub.model_arguments("bfloat16") == {
        "pretrained": "meta-llama/Llama-3.2-1B", "revision": "abc", "dtype": "bfloat16",
    }  # fmt: skip
    assert find_target("gpt2").kind == "hub"


def test_what_is_no_target_is_said(tmp_path: Path) -> None:
    for name in (str(tmp_path / "gone"), "runs/gone", "./gone", "a/b/c"):
        with pytest.raises(UserError, match=f"no folder {name}"):
            find_target(name)
    with pytest.raises(UserError, match=r"holds neither adapter/adapter_config.json .* nor config.json"):
        find_target(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        find_target(str(tmp_path / "file"))
    (tmp_path / "fit.yaml").touch()
    with pytest.raises(UserError, match=r"has no adapter: it was not finished.*fit --config"):
        find_target(str(tmp_path))
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors"):
        find_target(str(write_run(tmp_path / "cut", "gpt2", weights=False)))
    with pytest.raises(UserError, match=r"was trained on the model folder \./gone, which is not there"):
        find_target(str(write_run(tmp_path / "moved", "./gone")))


def test_a_hub_model_that_is_not_there_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not in the local cache"):
        find_target("nobody/nothing").describe()
