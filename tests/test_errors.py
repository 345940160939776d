"""Error messages for users are one line of bounded length, whatever they quote."""

import pickle

import pytest

from mlm_jax.errors import InputError, RunError, one_line


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_messages_are_one_bounded_line(kind: type[Exception]) -> None:
    assert str(kind("file: must be 1")) == "file: must be 1"
    assert str(kind("two\nlines\r\n")) == "two lines"
    message = str(kind(f"file: value {'x' * 10_000}: must be 1"))
    assert len(message) <= 1000
    assert message.startswith("file: value xxx")
    assert message.endswith("xxx: must be 1")
    assert str(pickle.loads(pickle.dumps(kind("a")))) == "a"


def test_an_error_without_a_message_is_named() -> None:
    assert one_line(EOFError()) == "EOFError"
    assert one_line(ValueError("a\n b")) == "a b"
