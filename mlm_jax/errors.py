"""What a user can cause or has to hear: two classes, so that the command line knows what to print in one line."""

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
# EX_TEMPFAIL of sysexits.h: stopped by a signal, everything is saved, the same command goes on.
EXIT_STOPPED = 75


class InputError(ValueError):
    """Bad input: a file, a line, a field or a setting. The message is one line: what, where, what would be right."""


class RunError(RuntimeError):
    """A run that cannot go on, through no fault of its input. The message is one line: what, where, what is left."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first `limit` characters of an error's message, on one line."""
    return " ".join(str(error).split())[:limit]
