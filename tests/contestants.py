"""Fake contestants of a benchmark."""

from pathlib import Path

import pytest


def importable(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes a module with this source where child processes can import it, and returns its name."""
    (folder / "a_contestant.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[1]}")
    return "a_contestant"
