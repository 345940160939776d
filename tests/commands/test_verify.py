"""`mlm-jax verify` accepts intact folders and names what is damaged in others."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mlm_jax.__main__ import run_command
from mlm_jax.config import DataConfig
from mlm_jax.data.sources import open_run_data
from mlm_jax.errors import InputError
from mlm_jax.preparation.prepare import prepare
from mlm_jax.store.conversion import convert
from tests.run_small import documents, prepared, tokenizer, uninterrupted


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Copies of prepared data, a run, and a converted model."""
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    convert(uninterrupted(), tmp_path / "model", "mlm_jax")
    return {
        "data": shutil.copytree(prepared(), tmp_path / "data"),
        "run": shutil.copytree(uninterrupted(), tmp_path / "run"),
        "model": tmp_path / "model",
    }


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_checkpoint(folder: Path) -> None:
    # Every data file, because the clock decides which of them hold only what was superseded while it was written.
    for file in folder.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)


@pytest.mark.slow
def test_intact_and_damaged_folders(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["verify", *map(str, folders.values())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(map(str, folders.values()))
    assert "1 shards" in lines[0]
    assert "checkpoints of steps 30, 35, 40: intact" in lines[1]

    damaged = [folders["data"] / "tokens-00000.bin", folders["run"], folders["model"] / "model.safetensors"]
    for file in (damaged[0], damaged[2]):
        flip(file)
    damage_checkpoint(folders["run"] / "checkpoints" / "35")
    assert run_command(["verify", *map(str, folders.values())]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    errors = told.err.splitlines()
    assert errors[0].startswith(f"error: {damaged[0]}: damaged: its sha256")
    assert errors[1].startswith(f"error: {folders['run'] / 'checkpoints' / '35'}: damaged: ")
    assert errors[2].startswith(f"error: {damaged[2]}: damaged")
    assert len(errors) == 3


def test_files_that_were_added_to_a_model_are_named(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folders["model"] / "tokenizer" / "special_tokens_map.json").write_text("{}")
    assert run_command(["verify", str(folders["model"])]) == 0
    line = "model: intact, except for files that were added to it: tokenizer/special_tokens_map.json\n"
    assert capsys.readouterr().out == f"{folders['model']}: {line}"


def test_folders_with_other_names_are_no_checkpoints(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0040", "\u0664\u0660"):
        (folders["run"] / "checkpoints" / name).mkdir()
    assert run_command(["verify", str(folders["run"])]) == 0
    assert "checkpoints of steps 30, 35, 40: intact" in capsys.readouterr().out
    with pytest.raises(InputError, match="0040: not a known model format"):
        run_command(["fill-mask", str(folders["run"] / "checkpoints" / "0040"), "a [MASK]"])


@pytest.mark.slow
def test_one_checkpoint_of_a_run(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = folders["run"] / "checkpoints"
    damage_checkpoint(checkpoints / "35")
    assert run_command(["verify", str(checkpoints / "40")]) == 0
    assert "run, checkpoints of steps 40: intact" in capsys.readouterr().out
    assert run_command(["verify", str(checkpoints / "35")]) == 2
    assert f"error: {checkpoints / '35'}: damaged: " in capsys.readouterr().err


def swap_entries(file: Path) -> None:
    """Swaps two entries of a tokenizer.json."""
    settings = json.loads(file.read_text())
    token_ids = settings["model"]["vocab"]
    token_ids["a"], token_ids["b"] = token_ids["b"], token_ids["a"]
    file.write_text(json.dumps(settings))


def test_the_tokenizer_of_a_run(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = folders["run"]
    swap_entries(run / "tokenizer" / "tokenizer.json")
    assert run_command(["verify", str(run), str(run / "checkpoints" / "35")]) == 2
    assert capsys.readouterr().err.count("belongs to something else: tokenizer.fingerprint: ") == 2
    with pytest.raises(InputError, match=r"something else: tokenizer\.fingerprint: \S+ in the checkpoint"):
        run_command(["fill-mask", str(run), "a [MASK]"])


def test_the_edited_config_of_a_run(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = folders["run"] / "config.json"
    config = file.read_text()
    for name, before, now in (("num_heads", "2", "4"), ("mask_dropout_id", "null", "4")):
        file.write_text(config.replace(f'"{name}": {before}', f'"{name}": {now}'))
        assert run_command(["verify", str(folders["run"])]) == 2
        message = f"belongs to something else: model.{name}: {before} in the checkpoint, {now} now"
        assert message in capsys.readouterr().err


def test_the_tokenizer_of_prepared_data(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = folders["data"] / "tokenizer" / "tokenizer.json"
    swap_entries(file)
    assert run_command(["verify", str(folders["data"])]) == 2
    assert f"error: {file.parent}: damaged: its fingerprint is" in capsys.readouterr().err
    with pytest.raises(InputError, match="data/tokenizer: damaged: its fingerprint is"):
        open_run_data(DataConfig(path=str(folders["data"]), sequence_length=20))
    shutil.rmtree(file.parent)
    assert run_command(["verify", str(folders["data"])]) == 2
    assert f"error: {file.parent}: no such file" in capsys.readouterr().err


def test_what_was_held_out_is_verified_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, data = tmp_path / "text.txt", tmp_path / "data"
    text.write_text("\n".join(documents()[:100]))
    prepare([text], tokenizer(), data, eval_share=0.3)
    assert run_command(["verify", f"{data}/"]) == 0
    line = r"prepared data, 1 shards, [\d,]+ tokens; eval, 1 shards, [\d,]+ tokens: intact\n"
    assert re.fullmatch(re.escape(f"{data}/: ") + line, capsys.readouterr().out)
    flip(data / "eval" / "tokens-00000.bin")
    assert run_command(["verify", str(data)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {data}/eval/tokens-00000.bin: damaged: its sha256")


def test_other_folders_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run_command(["verify", str(tmp_path / "empty"), str(tmp_path / "missing"), str(prepared())]) == 2
    told = capsys.readouterr()
    assert "missing: no such folder" in told.err
    assert told.err.count("error: ") == 2
    assert "intact" in told.out
