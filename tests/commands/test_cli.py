"""How a script ends, and what is said of arguments that do not parse."""

import io
import sys
from pathlib import Path

import pytest

from mlm_jax.commands import cli
from mlm_jax.errors import InputError
from scripts.fill_mask import Arguments as FillMask
from scripts.train_tokenizer import Arguments as TrainTokenizer

REFUSALS = [
    (TrainTokenizer, ["--input", "a.txt"], "Missing from PROG: --output STR"),
    (
        TrainTokenizer,
        ["--input", "a.txt", "--otput", "b"],
        "Missing from PROG: --output STR; Unrecognized options: --otput b",
    ),
    (FillMask, [], "Missing from PROG: MODEL"),
    (
        FillMask,
        ["a", "b", "--topk", "3"],
        "Unrecognized options: --topk, 3; Perhaps you meant: --top-k INT",
    ),
    (
        FillMask,
        ["a", "b", "--top-k", "x" * 150],
        f"--top-k: invalid literal for int() with base 10: '{'x' * 150}'",
    ),
]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(("arguments_class", "arguments", "message"), REFUSALS)
def test_what_is_wrong_is_one_line_without_the_help_on_any_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, arguments_class: type, arguments: list[str], message: str
) -> None:
    """tyro draws its boxes with other characters where stdout is not UTF-8."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(InputError) as refused:
        cli.parse(arguments_class, prog="PROG", args=arguments)
    assert str(refused.value) == message


def test_help_is_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        cli.parse(TrainTokenizer, prog="PROG", args=["--help"])
    assert ended.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def fail_to_read(path: Path) -> None:
    path.read_text()


def fail_without_a_file(path: Path) -> None:
    raise OSError("no file is to blame")


@pytest.mark.parametrize(
    ("main", "said"), [(fail_to_read, "{}: Is a directory"), (fail_without_a_file, "no file is to blame")]
)
def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], main, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: main(tmp_path))
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {said.format(tmp_path)}\n"
