"""Outputs that cannot be written are refused before any work is done for them."""

import os
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.files.atomic import new_folder
from mlm_jax.files.targets import check_target, check_target_file, failed_write, require_nothing_else


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gs://bucket/run", "gs://bucket/run: must be a local path, not a URL"),
        (Path("s3://bucket/run"), "s3://bucket/run: must be a local path, not a URL"),
        ("file:///tmp/run", "file://tmp/run: must be a local path"),
        ("", "must have a name"),
        (" ", "must have a name"),
        ("~/runs/mine", "~/runs/mine: ~ means a home folder only in a shell; must be /.*/runs/mine"),
        ("link/run", "link/run: link is a link to gone, which does not exist"),
        ("loop", "loop: loop is a link to loop, which does not exist"),
        ("file", "file: is a file; must be a folder"),
        ("file/below/it", "file/below/it: file is a file; must be a folder"),
        ("closed/run", "closed/run: closed cannot be written"),
        ("ü" * 76, "ü: a name is too long: must have at most 150 bytes"),
        ("ü" * 128, "ü: a name is too long: must have at most 150 bytes"),
    ],
)
def test_an_unusable_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | Path, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    # As on a file system that is mounted for reading only, where root cannot write, either.
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "closed" and writable(path, mode))
    with pytest.raises(InputError, match=message) as refused:
        check_target(target)
    assert "\n" not in str(refused.value)
    for usable in ("new/folder", ".", tmp_path / "a:b", "c:", "~unknown", "a~"):
        check_target(usable)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "closed", "link", "loop"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("manifest.json", "prepared data"),
        ("config.json", "a model or a run"),
        ("bert_config.json", "a model"),
        ("vocab.txt", "a tokenizer"),
        ("_CHECKPOINT_METADATA", "a checkpoint"),
    ],
)
def test_the_folder_of_something_else_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    require_nothing_else(tmp_path / "new", own=[])
    (tmp_path / "notes.txt").touch()
    require_nothing_else(tmp_path, own=[])
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"is the folder of {kind} .it has {name}.; choose another folder"):
        require_nothing_else(tmp_path, own=[])
    require_nothing_else(tmp_path, own=[name])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (Path("gs://features.npz"), "gs://features.npz: must be a local path"),
        (Path("folder"), "folder: is a folder; must be a file"),
        (Path("file/features.npz"), "file: is a file; must be a folder"),
    ],
)
def test_an_unusable_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        check_target_file(file)
    check_target_file(Path("new/features.npz"))


def test_a_new_folder_is_local() -> None:
    with pytest.raises(InputError, match="gs://model: must be a local path"):
        new_folder(Path("gs://model")).__enter__()
    assert not Path("gs:").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "whatever"), "No space left on device"),
        (RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'), "No space left on device"),
        (RuntimeError("I/O error (os error 122)"), "Disk quota exceeded"),
        (RuntimeError("Can't write (file write failed: errno = 28, buf = 0x28)"), "No space left on device"),
        (OSError(2, "No such file"), None),
        (ValueError("errno = 280 is not 28"), None),
    ],
)  # fmt: skip
def test_a_full_disk_is_recognized_in_the_errors_of_libraries(error: Exception, expected: str | None) -> None:
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    assert failed_write(error) == failed_write(wrapped) == expected
