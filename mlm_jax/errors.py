"""The two exceptions that a user may see, and the exit codes of the commands."""

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
# EX_TEMPFAIL of sysexits.h: stopped by a signal, everything is saved, rerun the same command to resume.
EXIT_STOPPED = 75
# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED = 130


class InputError(ValueError):
    """Bad input: a file, a line, a field or a setting. The message is one line: what, where, what would be right."""


class RunError(RuntimeError):
    """A run that cannot continue although its input is right. The message is one line: what, where, what is intact."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first `limit` characters of an error's message, on one line."""
    return " ".join(str(error).split())[:limit]
