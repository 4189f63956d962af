"""Every test in a folder of its own, with a token cache beside it that all share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robust.robust_kit import make_model, make_rows


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model `model` and sound rows `rows`."""
    root = tmp_path_factory.mktemp("sound")
    make_model(root / "model")
    make_rows(root / "rows")
    return root


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; `model` and `rows` in it are the sound ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
    monkeypatch.setenv("HOME", str(shared / "home"))
    (tmp_path / "model").symlink_to(shared / "model")
    (tmp_path / "rows").symlink_to(shared / "rows")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder that is not there yet."""
    return tmp_path / "results"
