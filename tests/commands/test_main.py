"""`mlm-jax` and `python -m mlm_jax`: help, version, and what they import."""

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import mlm_jax
from mlm_jax.__main__ import COMMANDS, main, run_command
from mlm_jax.errors import InputError

COMMAND_FILES = Path(mlm_jax.__file__).parent / "commands"


def test_help_has_one_line_per_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= 80
    for name, summary in COMMANDS.items():
        assert sum(row.split(maxsplit=1) == [name, summary] for row in rows) == 1
        assert (COMMAND_FILES / f"{name.replace('-', '_')}.py").is_file()
    assert run_command([]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        run_command([name, "--help"])
    assert ended.value.code == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith(f"usage: mlm-jax {name}")
    assert len(rows) <= 50
    assert max(map(len, rows)) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"mlm-jax {mlm_jax.__version__}\n"
    assert mlm_jax.__version__ == version("mlm-jax")


def test_a_misspelled_command_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="trian: no such command; did you mean 'train'"):
        run_command(["trian"])


def test_the_console_script_is_main() -> None:
    scripts = [script for script in entry_points(group="console_scripts") if script.name == "mlm-jax"]
    assert scripts, "the package is not installed, or an older one without commands is"
    assert scripts[0].load() is main


def test_help_starts_neither_jax_nor_another_slow_library() -> None:
    program = """
import contextlib, sys
from mlm_jax.__main__ import COMMANDS, run_command
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        run_command([name, "--help"])
slow = {"jax", "flax", "optax", "orbax", "matplotlib", "pyarrow", "torch", "tensorflow", "tensorboardX"}
sys.exit(", ".join(slow & set(sys.modules)) or None)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_reader_that_leaves_early_causes_no_message() -> None:
    command = f"{sys.executable} -m mlm_jax train --help-all | true"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.stderr == ""


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "mlm_jax", "merge"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: the following arguments are required: DATA; mlm-jax merge --help lists the flags\n"
    )


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_vocabulary_is_not_written_into_the_folder_of_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("the tower\n" * 20)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text("{}")
    command = ["tokenizer", "--input", f"{tmp_path}/a.txt", "--vocab-size", "40", "--output"]
    with pytest.raises(InputError, match=f"theirs: is the folder of .*{name}.*; choose another folder"):
        run_command([*command, f"{tmp_path}/theirs"])
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == [name]
    for _ in range(2):
        run_command([*command, f"{tmp_path}/ours"])
