import pytest

from forgetting.errors import UserError
from forgetting.paths import expanded, is_local


def test_a_path_and_an_id_on_the_hub_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/model").mkdir(parents=True)
    for path in ("./a", "../a", "/a", "~/a", "a/b/c", "runs/a", "worlds/1", "owner/model"):
        assert is_local(path), path
    for hub_id in ("gpt2", "owner/other", "meta-llama/Llama-3.2-1B"):
        assert not is_local(hub_id), hub_id
    with pytest.raises(UserError, match="Write the path without '~'"):
        expanded("~nobody-of-this-name/a")
