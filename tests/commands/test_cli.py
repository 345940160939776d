"""Exit codes and one-line errors of commands."""

from pathlib import Path

import pytest

from mlm_jax.commands import cli
from mlm_jax.errors import InputError, RunError


def fail_to_read(path: Path) -> None:
    path.read_text()


def fail_without_a_file(path: Path) -> None:
    raise OSError("no file is to blame")


def refuse(path: Path) -> None:
    raise InputError(f"{path}: must be another")


def give_up(path: Path) -> None:
    raise RunError(f"{path}: cannot continue")


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (fail_to_read, 1, "{}: Is a directory"),
        (fail_without_a_file, 1, "no file is to blame"),
        (refuse, 2, "{}: must be another"),
        (give_up, 1, "{}: cannot continue"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], main, code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: main(tmp_path))
    assert ended.value.code == code
    assert capsys.readouterr().err == f"error: {message.format(tmp_path)}\n"


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("main", "code"), [(lambda: None, None), (lambda: 75, 75), (interrupt, 130)])
def test_exit_codes(main, code: int | None) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == code


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)
