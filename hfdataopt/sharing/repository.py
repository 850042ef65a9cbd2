"""What goes to and comes from a dataset repository of the hub."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfdataopt.errors import OptionError, StoreError, first_line

_GITS_OWN = (".gitattributes", "README.md")


def upload(
    write: Callable[[Path], None],
    repo_id: str,
    document: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    commit_message: str,
) -> str:
    """Make what ``write`` puts into a folder the content of the dataset repository, which is created where there is none; its URL.

    Args:
        document: the file by which a repository is known as one of this kind.
        private, token, revision: as ``huggingface_hub`` takes them; a branch that is not there is made.

    Raises:
        StoreError: the repository holds something else, or the hub cannot be written.
    """
    import huggingface_hub

    _check_id(repo_id)
    api = huggingface_hub.HfApi(token=token)
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset"}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        try:
            url = api.create_repo(**where, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(**where, branch=revision, exist_ok=True)
            there = [name for name in api.list_repo_files(**where, revision=revision) if name not in _GITS_OWN]
            if there and document not in there:
                raise StoreError(
                    f"the repository {repo_id!r} holds something else ({', '.join(sorted(there)[:3])}); nothing was uploaded. Choose "
                    "another name"
                )
            api.upload_folder(
                **where,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns="data/*.parquet",  # shards of an earlier upload
            )
        except (StoreError, KeyboardInterrupt):
            raise
        except Exception as error:  # of the network, the hub, or a disk
            raise StoreError(
                f"nothing could be uploaded to {repo_id!r}: {type(error).__name__}: {first_line(error)}"
            ) from error
    return str(url)


def download(repo_id: str, patterns: Sequence[str], *, token: str | bool | None, revision: str | None) -> Path:
    """The local copy of the files of these names in a dataset repository.

    Raises:
        StoreError: it cannot be reached.
    """
    import huggingface_hub

    _check_id(repo_id)
    try:
        found = huggingface_hub.HfApi(token=token).snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
        )
    except Exception as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise StoreError(
            f"the repository {repo_id!r}{at} could not be downloaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    return Path(str(found))


def _check_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except (HFValidationError, TypeError) as error:
        raise OptionError(f"repo_id={repo_id!r} is no name of a repository: {first_line(error)}") from error
