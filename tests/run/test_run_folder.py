"""A run folder has one owner, and a run notices if it is removed, moved, or cannot be written."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlm_jax.config import DataConfig
from mlm_jax.errors import InputError, RunError
from mlm_jax.files.folder_lock import lock_folder
from mlm_jax.run.trainer import train
from tests.locks import held_by_another_process
from tests.run_small import config_of, listing, run_script, uninterrupted


def test_a_second_training_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    before = listing(run)
    with held_by_another_process(run) as child:
        arguments = ("--output-dir", run, "--num-steps", 50, "--optimizer.learning-rate", 1)
        ended = run_script("train", run / "config.json", *arguments)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"error: {run}: in use by process {child.pid} on ")
        assert ended.stderr.count("\n") == 1
    assert listing(run) == before


@pytest.mark.parametrize("name", ["manifest.json", "vocab.txt", "config.json"])
def test_a_run_in_the_folder_of_data_or_a_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=f"is the folder of .*{name}"):
        train(config_of(tmp_path, num_steps=5))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/40/state", "checkpoints/new", "tensorboard/new"]
)
def test_a_run_inside_the_folders_of_another_one_is_refused(tmp_path: Path, name: str) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    before = listing(run)
    with pytest.raises(InputError, match=f"{name}: is inside the run {run.resolve()}; choose another folder"):
        train(config_of(run / name, num_steps=5))
    assert listing(run) == before


def test_a_run_owns_its_folder_until_it_ends(one_device: None, tmp_path: Path) -> None:
    run, acquired = tmp_path / "run", []

    def try_to_lock() -> None:
        with lock_folder(run) as lock:
            acquired.append(lock.acquired)

    def try_in_another_thread(step: int) -> None:
        thread = threading.Thread(target=try_to_lock)
        thread.start()
        thread.join()

    train(config_of(run, num_steps=5), on_step=try_in_another_thread)
    assert acquired == [False] * 5
    assert not (run / "lock").exists()
    with pytest.raises(InputError, match="nowhere"):
        train(config_of(tmp_path / "new", data=DataConfig(path="nowhere", sequence_length=20)))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["removed", pytest.param("moved", marks=pytest.mark.slow)])
def test_a_run_whose_folder_is_gone_fails(one_device: None, tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"

    def lose_the_folder(step: int) -> None:
        if step == 5:
            shutil.rmtree(run) if what == "removed" else run.rename(tmp_path / "elsewhere")

    with pytest.raises(RunError, match="run: the folder was removed, moved or replaced"):
        train(config_of(run, num_steps=8, log_every=3, checkpoint_every=8), on_step=lose_the_folder)
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("output_dir", "message"),
    [
        ("gs://bucket/run", "gs://bucket/run: must be a local path"),
        ("", "the output must have a name"),
        ("file", "file: is a file"),
        ("file/run", "file/run: file is a file"),
    ],
)
def test_an_unusable_run_folder_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InputError, match=message):
        train(replace(config_of(tmp_path / "run"), output_dir=output_dir))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_moved_run_is_resumed_where_it_is(tmp_path: Path) -> None:
    """Named by its folder or by the config.json in it, which still has the old place."""
    moved = shutil.copytree(uninterrupted(), tmp_path / "moved")
    for config in (moved, moved / "config.json"):
        ended = run_script("train", config)
        assert ended.returncode == 0, ended.stderr
        assert f"{moved}: already finished, at step 40 of 40" in ended.stderr
    # A config.json that is not in a run folder keeps its output_dir.
    elsewhere = tmp_path / "config.json"
    elsewhere.write_bytes((moved / "config.json").read_bytes())
    assert f"{uninterrupted()}: already finished" in run_script("train", elsewhere).stderr


def test_a_folder_that_is_no_config_is_refused(tmp_path: Path) -> None:
    assert "no config.json in it: must be a run folder" in run_script("train", tmp_path).stderr
    checkpoint = uninterrupted() / "checkpoints" / "35"
    ended = run_script("train", checkpoint)
    assert ended.returncode == 2
    assert f"`{uninterrupted()} --from-step 35` resumes that run" in ended.stderr
