"""The two exceptions meant for users, and the exit codes of the commands."""

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
# EX_TEMPFAIL of sysexits.h: a signal stopped the command, all work is saved, and rerunning the command resumes it.
EXIT_STOPPED = 75
# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED = 130


# Longer messages quote a value of a damaged file, and are shortened in the middle.
_LONGEST_MESSAGE = 1000


class _OneLineError(Exception):
    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        half = _LONGEST_MESSAGE // 2 - 1
        super().__init__(line if len(line) <= _LONGEST_MESSAGE else f"{line[:half]}…{line[-half:]}")


class InputError(_OneLineError, ValueError):
    """Invalid input. The message is one line that states what is wrong, where, and what would be right."""


class RunError(_OneLineError, RuntimeError):
    """Failure of a run with valid input. The message is one line that states what failed, where, and what is intact."""


def describe_os_error(error: OSError) -> str:
    """Returns the file of an error, if it names one, and the system's description."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first `limit` characters of an error's message, on one line, or its type if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
