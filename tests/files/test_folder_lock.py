"""A folder has one owner at a time; the owner is named while it lives, and remembered if it dies."""

import errno
import os
import shutil
import signal
import socket
import threading
from datetime import datetime
from pathlib import Path

import pytest

from mlm_jax.errors import InputError, RunError
from mlm_jax.files import folder_lock
from mlm_jax.files.folder_lock import FolderInUseError, lock_folder, own_folder, own_name
from tests.locks import held_by_another_process


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_another_process_sees_the_owner_until_it_releases(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path / "run") as child:
        with lock_folder(tmp_path / "run") as lock:
            assert not lock.acquired
            assert lock.owner is not None
            assert (lock.owner.host, lock.owner.pid, lock.owner.step) == (socket.gethostname(), child.pid, 7)
            assert abs((datetime.now().astimezone() - datetime.fromisoformat(lock.owner.since)).seconds) < 60
        with lock_folder(tmp_path / "other") as lock:
            assert lock.acquired
        expected = (
            f"run: in use by process {child.pid} on {socket.gethostname()} since {lock.owner.since[:10]}"
        )
        with pytest.raises(InputError, match=f"{expected}.*; wait until it ends, or choose"):
            own_folder(tmp_path / "run").__enter__()
    with lock_folder(tmp_path / "run") as lock:
        assert (lock.acquired, lock.died) == (True, [])


def test_dead_owners_are_remembered_until_an_owner_releases(tmp_path: Path) -> None:
    pids = []
    for _ in range(2):
        with held_by_another_process(tmp_path) as child:
            child.communicate("die")
        assert child.returncode == -signal.SIGKILL
        pids.append(child.pid)
    with (tmp_path / "lock").open("a") as file:
        file.write('{"host": "torn')
    with own_folder(tmp_path) as lock:
        assert [(owner.pid, owner.step) for owner in lock.died] == [(pid, 7) for pid in pids]
        assert lock.owner is not None
        assert (lock.owner.pid, lock.owner.step) == (os.getpid(), None)
    with own_folder(tmp_path) as lock:
        assert lock.died == []


def test_nothing_remains_of_a_lock(tmp_path: Path) -> None:
    """Neither its file nor an empty folder, unless something was written into the folder."""
    with own_folder(tmp_path / "a" / "b"):
        assert names_in(tmp_path / "a" / "b") == {"lock"}
    assert names_in(tmp_path) == set()
    with own_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").touch()
    assert names_in(tmp_path / "a" / "b") == {"x"}
    (tmp_path / "empty").mkdir()
    with own_folder(tmp_path / "empty"):
        pass
    assert names_in(tmp_path) == {"a", "empty"}


def test_a_block_locks_its_own_folder_again_but_other_threads_do_not(tmp_path: Path) -> None:
    found = []

    def try_to_lock() -> None:
        with lock_folder(tmp_path / "run") as lock:
            found.append(lock.acquired)

    with own_folder(tmp_path / "run") as outer, own_folder(tmp_path / "x" / ".." / "run") as inner:
        assert inner is outer
        thread = threading.Thread(target=try_to_lock)
        thread.start()
        thread.join()
    try_to_lock()
    assert found == [False, True]


def test_a_new_owner_waits_for_a_lock_that_is_removed_meanwhile(tmp_path: Path) -> None:
    """Its file has no name any more, so owning it would exclude nobody."""
    waits, owned = threading.Event(), []

    def wait_for_the_lock() -> None:
        waits.set()
        with lock_folder(tmp_path / "run", wait=True) as lock:
            owned.append((tmp_path / "run" / "lock").read_text())
            lock.confirm()

    with own_folder(tmp_path / "run"):
        thread = threading.Thread(target=wait_for_the_lock)
        thread.start()
        waits.wait()
    thread.join()
    assert f'"pid": {os.getpid()}' in owned[0]


@pytest.mark.parametrize("what", ["removed", "replaced", "moved"])
def test_a_folder_that_is_gone_is_noticed(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "run"
    with own_folder(folder) as lock:
        lock.confirm()
        if what == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(folder)
        if what == "replaced":
            with (
                held_by_another_process(folder),
                pytest.raises(RunError, match="run: the folder was removed"),
            ):
                lock.confirm()
        else:
            with pytest.raises(RunError, match="run: the folder was removed"):
                lock.confirm()


def test_a_folder_is_not_created_under_a_name_that_another_process_is_about_to_create(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_CREATION_SECONDS", 0.1)
    run = tmp_path / "runs" / "a"
    with held_by_another_process(run, "name") as child:
        for lock in (own_folder(run), lock_folder(run), lock_folder(run, wait=True)):
            with pytest.raises(FolderInUseError, match=f"a: in use by process {child.pid} on .*; wait"), lock:
                pass
        assert names_in(tmp_path / "runs") == {".a.lock"}
    assert names_in(tmp_path) == set()


def test_the_name_of_a_folder_that_another_process_owns_is_refused(tmp_path: Path) -> None:
    with (
        held_by_another_process(tmp_path / "a"),
        pytest.raises(InputError, match="a: already exists"),
        own_name(tmp_path / "a"),
    ):
        pass


def test_a_folder_that_another_process_has_just_created_is_locked_by_the_next(tmp_path: Path) -> None:
    """The first of the processes of a sweep still has the name while the second sees that there is no folder."""
    run, creates, may_create = tmp_path / "a", threading.Event(), threading.Event()

    def create() -> None:
        with folder_lock._locked(tmp_path / ".a.lock"):
            creates.set()
            may_create.wait()
            run.mkdir()
            may_create.clear()
            may_create.wait()

    thread = threading.Thread(target=create)
    thread.start()
    creates.wait()
    threading.Timer(0.2, may_create.set).start()
    with lock_folder(run) as lock:
        assert lock.acquired
    may_create.set()
    thread.join()


def test_the_name_is_free_while_the_folder_is_owned(tmp_path: Path) -> None:
    with own_folder(tmp_path / "a"):
        assert names_in(tmp_path) == {"a"}
        (tmp_path / "a").rename(tmp_path / "b")
        with own_name(tmp_path / "a"):
            pass


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "link to an empty file"])
def test_a_pipe_or_a_link_is_not_taken_for_a_lock(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    place = tmp_path / "run" / "lock"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "elsewhere")
    if kind == "link to an empty file":
        (tmp_path / "elsewhere").touch()
    with pytest.raises(InputError, match="lock: not a lock of mlm_jax"):
        own_folder(tmp_path / "run").__enter__()
    assert names_in(tmp_path / "run") == {"lock"}
    if kind == "link to an empty file":
        assert (tmp_path / "elsewhere").read_bytes() == b""


def test_a_folder_of_the_user_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(InputError, match="lock: not a lock of mlm_jax"):
        own_folder(tmp_path).__enter__()


def test_a_file_of_the_user_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    for name in ("lock", ".b.lock"):
        (tmp_path / name).write_text("bolt, key and chain")
    with pytest.raises(InputError, match="lock: not a lock of mlm_jax"):
        own_folder(tmp_path).__enter__()
    with pytest.raises(InputError, match=r"\.b\.lock: not a lock of mlm_jax"):
        own_name(tmp_path / "b").__enter__()
    assert {path.read_text() for path in tmp_path.iterdir()} == {"bolt, key and chain"}


def test_without_locks_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    folder_lock._warn_once.cache_clear()
    for name in ("a", "b"):
        with own_folder(tmp_path / name) as lock:
            assert lock.acquired
            lock.confirm()
    assert capsys.readouterr().err.count("warning: this file system has no locks") == 1


def test_another_error_of_the_file_system_is_not_taken_for_the_absence_of_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder_lock.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        own_folder(tmp_path / "a").__enter__()


def test_a_place_without_files_is_named() -> None:
    with (
        pytest.raises(InputError, match="/proc: no file can be created there"),
        lock_folder(Path("/proc/x")),
    ):
        pass
