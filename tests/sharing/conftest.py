"""A hub that is a folder: the four calls that sharing makes of ``huggingface_hub.HfApi``."""

import fnmatch
import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest


class FolderApi:
    """Dataset repositories below ``root``, one folder per branch; what was asked is in ``calls``."""

    root: Path
    calls: list[tuple[str, dict]]

    def __init__(self, token=None):
        self.token = token

    def _folder(self, repo_id, revision):
        return self.root / repo_id / (revision or "main")

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "dataset"
        assert exist_ok
        self.calls.append(("create_repo", {"repo_id": repo_id, "private": private, "token": self.token}))
        self._folder(repo_id, None).mkdir(parents=True, exist_ok=True)
        return f"https://hub.example/datasets/{repo_id}"

    def create_branch(self, repo_id, *, repo_type, branch, exist_ok):
        if not self._folder(repo_id, branch).exists():
            shutil.copytree(self._folder(repo_id, None), self._folder(repo_id, branch))

    def list_repo_files(self, repo_id, *, repo_type, revision):
        folder = self._folder(repo_id, revision)
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def upload_folder(self, *, repo_id, repo_type, folder_path, revision, commit_message, delete_patterns):
        self.calls.append(("upload_folder", {"revision": revision, "message": commit_message}))
        folder = self._folder(repo_id, revision)
        for name in self.list_repo_files(repo_id, repo_type=repo_type, revision=revision):
            if fnmatch.fnmatch(name, delete_patterns):
                (folder / name).unlink()
        shutil.copytree(folder_path, folder, dirs_exist_ok=True)

    def snapshot_download(self, repo_id, *, repo_type, revision, allow_patterns):
        assert repo_type == "dataset"
        folder = self._folder(repo_id, revision)
        if not folder.is_dir():
            raise FileNotFoundError(f"404: no {repo_id} at {revision}")
        copy = self.root / ".cache" / str(len(list(self.root.glob(".cache/*"))))
        for name in self.list_repo_files(repo_id, repo_type=repo_type, revision=revision):
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, copy / name)
        copy.mkdir(parents=True, exist_ok=True)
        self.calls.append(("snapshot_download", {"revision": revision, "token": self.token}))
        return str(copy)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The class of the hub; ``hub.folder(repo_id, revision)`` is where a repository lies."""
    kind = type("HfApi", (FolderApi,), {"root": tmp_path / "hub", "calls": []})
    kind.folder = classmethod(lambda cls, repo_id, revision=None: cls.root / repo_id / (revision or "main"))
    monkeypatch.setattr(huggingface_hub, "HfApi", kind)
    return kind


def load(folder: str, *config: str) -> Any:
    """The repository in a folder as ``load_dataset`` reads it; its cache knows folders by name only, so each has its own."""
    with tempfile.TemporaryDirectory() as cache:
        return datasets.load_dataset(folder, *config, split="train", cache_dir=cache, keep_in_memory=True)
