"""Provide the tests of files with a quick `export` and its artifact."""

import pytest
from small_exports import TextExport


@pytest.fixture
def export(monkeypatch):
    return TextExport(monkeypatch)


@pytest.fixture
def artifact(export, tmp_path):
    """Return the folder of an artifact whose files hold "old"."""
    folder = tmp_path / "artifact"
    export(folder, "old")
    return folder
