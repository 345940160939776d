"""Code that kills the process which runs it, for tests of interrupted preparations."""

# Kills the process before its n-th call that changes the disk.
KILL_AT = """
import os, signal
calls = 0
def killing(call):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped
for name in ("fsync", "replace", "unlink", "mkdir"):
    setattr(os, name, killing(getattr(os, name)))
"""
