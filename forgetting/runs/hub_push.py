"""Pushing a folder to the hub: private unless told otherwise, and never by accident into a public repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx  # the client it uses itself, whose name differs between its versions

from forgetting.errors import UserError


def prepare_repository(repo_id: str, public: bool) -> str:
    """Make the repository where there is none, before anything large is written.

    Args:
        repo_id: `owner/name`, or a name of one's own.
        public: Make it public, or push to one that is.

    Returns:
        Its full id.

    Raises:
        UserError: The hub refuses, or the repository is public and `public` is not given.
    """
    api = HfApi()
    with _clear_errors(repo_id):
        full = api.create_repo(repo_id, private=not public, exist_ok=True).repo_id
        is_private = api.model_info(full).private
    if not public and not is_private:
        raise UserError(
            f"{full} is there already and public: everyone could read what is pushed. Give another id, make it private "
            "on the hub, or give --public."
        )
    return full


def push_folder(folder: Path, repo_id: str, message: str) -> str:
    """Upload a folder.

    Args:
        folder: All of it.
        repo_id: Of an existing repository.
        message: Of the commit.

    Returns:
        Where it can be seen.

    Raises:
        UserError: The upload failed; the folder is as it was.
    """
    with _clear_errors(repo_id, f" {folder} is complete: `hf upload {repo_id} {folder}` tries again."):
        commit = HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(commit.commit_url)


@contextmanager
def _clear_errors(repo_id: str, after: str = "") -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"Log in to push to {repo_id}: `hf auth login`, or set HF_TOKEN.{after}") from None
    except (HFValidationError, httpx.HTTPError, OSError) as error:  # HfHubHTTPError is both of the latter
        text = " ".join(str(error).split())
        if token := get_token():
            text = text.replace(token, "<token>")
        # Without its cause: a traceback would show the request.
        raise UserError(
            f"The hub did not take {repo_id}: {type(error).__name__}: {text}. Check the id, the connection, and that "
            f"the token may write (`hf auth login`).{after}"
        ) from None
