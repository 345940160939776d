"""A process that owns a folder."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.run_small import ROOT

_HOLD = """
import os, sys
from pathlib import Path
from mlm_jax.files.folder_lock import lock_folder, own_name
path = Path(sys.argv[1])
with own_name(path) if sys.argv[2] == "name" else lock_folder(path) as lock:
    if lock is not None:
        lock.note_step(7)
    print(flush=True)
    if sys.stdin.read() == "die":
        os.kill(os.getpid(), 9)
"""


@contextlib.contextmanager
def held_by_another_process(path: Path, what: str = "folder") -> Iterator[subprocess.Popen[str]]:
    """Locks a folder, or the "name" of a new folder, in a child until the end of the block.

    The child dies without releasing it if "die" is written to its stdin.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), what],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "\n"
    try:
        yield child
    finally:
        if child.poll() is None:
            child.communicate()
