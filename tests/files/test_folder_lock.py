"""One owner of a folder at a time, which is named while it lives and remembered if it dies."""

import os
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from mlm_jax.files.folder_lock import lock_folder

HOLD = """
import os, sys
from pathlib import Path
from mlm_jax.files.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])) as lock:
    lock.note_step(7)
    print(lock.acquired, flush=True)
    if sys.stdin.read() == "die":
        os.kill(os.getpid(), 9)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that owns the folder until it is told to release it or to die."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    return child


def test_others_see_who_owns_a_folder_and_own_it_after_a_release(tmp_path: Path) -> None:
    child = hold(tmp_path / "run")
    with lock_folder(tmp_path / "run") as lock:
        assert not lock.acquired
        assert lock.owner is not None
        assert (lock.owner.host, lock.owner.pid, lock.owner.step) == (socket.gethostname(), child.pid, 7)
        assert abs((datetime.now().astimezone() - datetime.fromisoformat(lock.owner.since)).seconds) < 60
        assert str(lock.owner) == f"process {child.pid} on {socket.gethostname()} since {lock.owner.since}"
    with lock_folder(tmp_path / "other") as lock:
        assert lock.acquired
    child.communicate("release")
    for _ in range(2):
        with lock_folder(tmp_path / "run") as lock:
            assert (lock.acquired, lock.died) == (True, [])
    assert (tmp_path / "run" / "lock").read_bytes() == b""


def test_owners_that_die_are_remembered_until_one_releases(tmp_path: Path) -> None:
    pids = []
    for _ in range(2):
        child = hold(tmp_path)
        child.communicate("die")
        assert child.returncode == -signal.SIGKILL
        pids.append(child.pid)
    with (tmp_path / "lock").open("a") as file:
        file.write('{"host": "torn')
    with lock_folder(tmp_path) as lock:
        assert lock.acquired
        assert [(owner.pid, owner.step) for owner in lock.died] == [(pid, 7) for pid in pids]
        assert lock.owner is not None
        assert (lock.owner.pid, lock.owner.step) == (os.getpid(), None)
    with lock_folder(tmp_path) as lock:
        assert lock.died == []
