"""Data sets on the Hugging Face hub: the commit that is read, and its rows."""

import re

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # the client it uses itself, whose name differs between its versions

from forgetting.corpus.configuration import Source
from forgetting.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")


def resolved_commit(source: Source) -> str | None:
    """The commit that a source's revision stands for now; None when the hub cannot be reached.

    Raises:
        UserError: There is no such data set or revision, or it is gated.
    """
    path, revision = str(source.path), source.revision
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    try:
        return HfApi().dataset_info(path, revision=revision, timeout=30).sha
    except GatedRepoError:
        raise UserError(_gated(source)) from None
    except RevisionNotFoundError:
        raise UserError(
            f"Source {source.name!r}: the data set {path} has no revision {revision!r} on the hub. "
            "Give a branch, a tag or a full commit, or leave revision out."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(_missing(source)) from None
    except HFValidationError as error:
        raise UserError(f"Source {source.name!r}: {path!r} is neither a file here nor a hub id ({error}).") from None
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError, ConnectionError):
        return None


def load_hub(source: Source, commit: str | None) -> tuple[datasets.Dataset, str]:
    """Load a hub data set at a commit, or from the cache alone when the hub cannot be reached.

    Args:
        source: The source.
        commit: The commit wanted; None takes what the cache holds.

    Returns:
        The data set and the commit it was really made from.

    Raises:
        UserError: It cannot be loaded, or the cache holds another commit than the one wanted.
    """
    path = str(source.path)
    try:
        loaded = datasets.load_dataset(path, source.config, split=source.split, revision=commit)
    except (DatasetsError, HfHubHTTPError, httpx.HTTPError, ValueError, OSError, RuntimeError) as error:
        raise UserError(_load_error(source, commit, error)) from None
    if not isinstance(loaded, datasets.Dataset):
        raise UserError(
            f"Source {source.name!r}: split {source.split!r} of {path} is not one table; name a single split."
        )
    cached = _commit_of(loaded)
    if cached is None:
        raise UserError(f"Source {source.name!r}: which commit of {path} the local cache holds is not recorded there.")
    if commit is not None and cached != commit:
        raise UserError(
            f"Source {source.name!r}: commit {commit} of {path} cannot be fetched, and the local cache holds "
            f"commit {cached}. Run once with network access, or set revision: {cached}."
        )
    if loaded.num_rows == 0:
        raise UserError(f"Source {source.name!r}: split {source.split!r} of {path} has no rows.")
    return loaded, cached


def _commit_of(loaded: datasets.Dataset) -> str | None:
    names = [str(name) for name in (loaded.info.download_checksums or {})]
    names += [str(file["filename"]) for file in loaded.cache_files]
    commits = {match for name in names for match in re.findall(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", name)}
    return commits.pop() if len(commits) == 1 else None


def _load_error(source: Source, commit: str | None, error: Exception) -> str:
    path, reason = source.path, " ".join(str(error).split())[:300]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return _gated(source)
        cause = cause.__cause__
    if "is a gated dataset" in reason:
        return _gated(source)
    if "nknown split" in reason or "Bad split" in reason:
        return f"Source {source.name!r}: the data set {path} has no split {source.split!r} ({reason})."
    if "BuilderConfig" in reason or "Config name" in reason or "for config" in reason:
        return f"Source {source.name!r}: config {source.config!r} does not fit the data set {path} ({reason})."
    offline = constants.HF_HUB_OFFLINE
    if offline or isinstance(error, ConnectionError | httpx.TransportError):
        state = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        return (
            f"Source {source.name!r}: {state}, and the data set {path}"
            f"{f' (commit {commit})' if commit else ''} is not in the local cache ({reason}). "
            f"Run once with network access, or give a local file."
        )
    if "doesn't exist on the Hub" in reason:
        return _missing(source)
    return f"Source {source.name!r}: the data set {path} cannot be loaded ({type(error).__name__}: {reason})."


def _gated(source: Source) -> str:
    return (
        f"Source {source.name!r}: the data set {source.path} is gated. Ask for access at "
        f"https://huggingface.co/datasets/{source.path}, then log in with `hf auth login` or set HF_TOKEN."
    )


def _missing(source: Source) -> str:
    return (
        f"Source {source.name!r}: {source.path} is neither a file or folder here nor a data set on the hub that you "
        "can see. "
        "Check the name; a private data set needs `hf auth login` or HF_TOKEN."
    )
