"""What a user can cause: one class, so that the command line knows what to print without a traceback."""


class InputError(ValueError):
    """Bad input: a file, a line, a field or a setting. The message is one line: what, where, what would be right."""
