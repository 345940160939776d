"""Flags made from a dataclass: values, one-line errors, and help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from mlm_jax.commands.flags import parse, positional, repeated, required
from mlm_jax.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Does something.

    And something else."""

    model: str = positional("MODEL")
    """A model."""
    texts: tuple[str, ...] = positional("TEXT")
    """Some texts."""
    output: Path = required("DIR")
    """Where it goes."""
    top_k: int = 5
    """Number of guesses.

    This paragraph is not part of the help."""
    rate: float | None = None
    """A rate, which may be left out or None."""
    group: tuple[str, ...] = repeated()
    """A group."""
    sizes: tuple[int, ...] = ()
    """Sizes."""
    pooling: Literal["mean", "cls"] = "mean"
    """How to pool."""
    joint: bool = True
    """All at once."""
    json: bool = False
    """Print JSON."""


REQUIRED = ["m", "t", "--output", "out"]


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999", "1e39", "1e-50"])
def test_numbers_are_finite_in_float32(text: str) -> None:
    with pytest.raises(InputError, match=f"--rate '{text}': must be ") as refused:
        parsed(*REQUIRED, f"--rate={text}")
    assert "a finite number" in str(refused.value) or "0, or 1.2e-38 to 3.4e+38" in str(refused.value)


def parsed(*arguments: str) -> Arguments:
    return parse(Arguments, arguments, "PROG")


def test_values_have_the_types_of_their_fields() -> None:
    found = parsed(
        *("runs/a", "one [MASK]", "-5 [MASK]", "--output=out", "--top-k", "-3", "--rate", "1e-3"),
        *("--sizes", "1", "2", "--pooling", "cls"),
    )
    assert found == Arguments(
        model="runs/a",
        texts=("one [MASK]", "-5 [MASK]"),
        output=Path("out"),
        top_k=-3,
        rate=1e-3,
        sizes=(1, 2),
        pooling="cls",
    )
    assert parsed(*REQUIRED, "--rate", "None").rate is None
    assert parsed(*REQUIRED, "--top_k=7").top_k == 7


def test_tuples_grow_when_their_flag_is_repeated() -> None:
    assert parsed("--group", "he", "m", "t", "--group", "she", "--output", "o").group == ("he", "she")
    assert parsed(*REQUIRED, "--sizes", "1", "2", "--sizes", "3").sizes == (1, 2, 3)


@pytest.mark.parametrize("text", ["True", "true"])
def test_switches_take_a_value_or_none(text: str) -> None:
    assert parsed(*REQUIRED, "--json").json
    assert parsed("m", "--json", text, "t", "--output", "o") == parsed("m", "--json", "t", "--output", "o")
    assert parsed(*REQUIRED, f"--json={text}").json
    assert not parsed(*REQUIRED, "--joint", "False").joint
    assert not parsed(*REQUIRED, "--joint=false").joint
    assert not parsed(*REQUIRED, "--no-joint").joint
    assert parsed(*REQUIRED, "--no-joint", "--joint").joint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: MODEL, TEXT, --output; PROG --help lists the flags"),
        (["a", "b"], "the following arguments are required: --output; PROG --help lists the flags"),
        (["a", "b", "--otput", "c"], "--otput: no such flag; did you mean '--output'?"),
        (["a", "b", "--topk=3"], "--topk: no such flag; did you mean '--top-k'?"),
        ([*REQUIRED, "--top-k", "x" * 150], f"--top-k {'x' * 150!r}: must be a whole number"),
        ([*REQUIRED, "--top-k"], "--top-k: expected one argument; PROG --help lists the flags"),
        ([*REQUIRED, "--rate", "fast"], "--rate 'fast': must be a number or None"),
        ([*REQUIRED, "--rate", "1_0"], "--rate '1_0': must be a number or None"),
        ([*REQUIRED, "--top-k", "1_000"], "--top-k '1_000': must be a whole number"),
        ([*REQUIRED, "--sizes", "1", "b"], "--sizes 'b': must be a whole number"),
        (
            [*REQUIRED, "--pooling", "man"],
            "--pooling 'man': must be one of 'mean', 'cls'; did you mean 'mean'?",
        ),
        ([*REQUIRED, "--json=maybe"], "--json 'maybe': must be True or False"),
        ([*REQUIRED, "--top-k", "3", "stray"], "unrecognized arguments: stray; PROG --help lists the flags"),
    ],
)
def test_errors_name_the_flag_the_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(InputError) as refused:
        parsed(*arguments)
    assert str(refused.value) == message


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_one_row_per_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        parsed("m", flag)
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "usage: PROG MODEL TEXT… --output DIR [--flag value …]",
        "",
        "Does something.",
        "",
        "And something else.",
        "",
        "  MODEL           A model.",
        "  TEXT…           Some texts.",
        "  --output DIR    Where it goes.",
        "  --top-k 5       Number of guesses.",
        "  --rate NUMBER   A rate, which may be left out or None.",
        "  --group TEXT    A group.",
        "  --sizes INT…    Sizes.",
        "  --pooling mean  How to pool.",
        "  --joint True    All at once.",
        "  --json          Print JSON.",
    ]


def test_help_is_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    with pytest.raises(SystemExit):
        parsed("--help")
    rows = capsys.readouterr().out.splitlines()
    assert "  --rate NUMBER   A rate, which may be left" in rows
    assert "                  out or None." in rows
