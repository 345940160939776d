"""Files and folders appear complete or not at all; test_prepare.py kills processes at every step of the way."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlm_jax.errors import InputError, RunError
from mlm_jax.files import atomic
from mlm_jax.files.atomic import (
    new_file,
    new_folder,
    partial_path,
    partial_paths,
    remove_abandoned,
    write_atomically,
    write_together,
)
from tests.locks import held_by_another_process


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_bytes_reach_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (steps.append(os.path.realpath(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("rename"), replace(old, new)))
    write_atomically(tmp_path / "a.json", b"content")
    partial, *rest = steps
    assert partial.startswith(str(tmp_path / "a.json."))
    assert partial.endswith(".partial")
    assert rest == ["rename", str(tmp_path)]
    assert (tmp_path / "a.json").read_bytes() == b"content"


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.json", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"before"


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    """As on two hosts with the same name and process ids, or in two threads."""
    with new_file(tmp_path / "a") as first, new_file(tmp_path / "a") as second:
        first.write(b"first, longer")
        second.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first, longer"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_second_writer_of_a_folder_is_refused_at_once(tmp_path):
    with held_by_another_process(tmp_path / "a", "name") as child:
        with pytest.raises(InputError, match=f"a: in use by process {child.pid} on "):
            new_folder(tmp_path / "a").__enter__()
        with new_folder(tmp_path / "b") as other:
            (other / "x").touch()
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
    with pytest.raises(InputError, match="a: already exists"):
        new_folder(tmp_path / "a").__enter__()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="link: already exists"):
        new_folder(tmp_path / "link").__enter__()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "link"}


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_messages_name_the_folder_and_not_its_temporary_name(tmp_path: Path, kind: type[Exception]) -> None:
    with (
        pytest.raises(kind, match=f"^{tmp_path / 'model'}/weights: wrong$"),
        new_folder(tmp_path / "model") as partial,
    ):
        raise kind(f"{partial / 'weights'}: wrong")
    assert list(tmp_path.iterdir()) == []


def test_without_locks_the_second_writer_damages_nothing(tmp_path, monkeypatch):
    """As on a file system without locks, or on two hosts that do not share them."""
    monkeypatch.setattr(atomic, "own_name", lambda path: contextlib.nullcontext())

    def write_while_another_does() -> None:
        with new_folder(tmp_path / "a") as first:
            (first / "x").write_text("first")
            with new_folder(tmp_path / "a") as second:
                assert (first / "x").exists()
                (second / "x").write_text("second")

    with pytest.raises(InputError, match="a: already exists"):
        write_while_another_does()
    assert (tmp_path / "a" / "x").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_one_line_that_names_the_target(tmp_path, small_disk):
    message = r"^\S*/a: No space left on device; nothing was written$"
    with pytest.raises(RunError, match=message), new_folder(small_disk / "a") as folder:
        (folder / "x").write_bytes(bytes(5_000_000))
    with pytest.raises(OSError, match="No space left") as failed, new_file(small_disk / "b") as file:
        file.write(bytes(5_000_000))
    assert failed.value.filename == str(small_disk / "b")
    assert list(small_disk.iterdir()) == []


def test_a_folder_of_the_user_is_never_removed(tmp_path):
    for name in ("a.partial", "a.notes.partial", f"a.{socket.gethostname()}-1.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("precious")
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
    assert len(list(tmp_path.rglob("thesis.tex"))) == 3


def test_only_the_temporary_files_of_dead_writers_are_removed(tmp_path, dead_pid):
    def left_by(host: str, pid: int, age: float = 0.0, name: str = "a") -> Path:
        path = tmp_path / f"{name}.{host}-{pid}-0123abcd.partial"
        path.mkdir()
        (path / "x").touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    here, hour = socket.gethostname(), 3600.0
    kept = {
        left_by(here, os.getpid(), 48 * hour),
        left_by("other.host-2", dead_pid, 23 * hour),
        left_by(here, dead_pid, name="ab"),
    }
    left_by(here, dead_pid)
    left_by("other.host-2", dead_pid + 1, 25 * hour)
    (tmp_path / f"a.{here}-{dead_pid}-89abcdef.partial").touch()
    assert len(partial_paths(tmp_path)) == 6
    remove_abandoned(tmp_path / "a")
    assert set(tmp_path.iterdir()) == kept
    remove_abandoned(tmp_path / "no" / "such" / "folder")


def test_temporary_names_are_unique_and_recognized(tmp_path):
    names = {partial_path(tmp_path / "a") for _ in range(100)}
    assert len(names) == 100
    for name in names:
        name.touch()
    assert set(partial_paths(tmp_path)) == names


def test_files_that_belong_together_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {tmp_path / name: name.encode() for name in ("a", "b", "c")}
    write_together(files)
    moments = [path.stat().st_ctime_ns for path in files]
    assert [path.read_bytes() for path in files] == [*files.values()]
    assert moments == sorted(moments)

    with pytest.raises(TypeError):
        write_together({tmp_path / "a": b"new", tmp_path / "b": 3})  # type: ignore[dict-item]
    assert {path: path.read_bytes() for path in sorted(tmp_path.iterdir())} == files
