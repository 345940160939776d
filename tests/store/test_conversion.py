"""Conversions: the files and the certificate, errors, and that nothing incomplete is left behind."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlm_jax.errors import InputError, RunError
from mlm_jax.formats import hugging_face, model_folder
from mlm_jax.formats.model_folder import read_model_folder, write_model_folder
from mlm_jax.store import conversion, reference_outputs
from mlm_jax.store.conversion import CERTIFICATE_FILE, Request, convert
from mlm_jax.store.format_registry import FORMATS, format_of
from mlm_jax.store.reference_outputs import Reference
from tests.formats.folders import hugging_face_folder
from tests.run_small import run_script, uninterrupted


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates that no library is installed; tests/peers compares with the real ones."""
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))


def test_round_trip_and_certificate(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", "BertForPreTraining")
    ours, back = tmp_path / "ours", tmp_path / "back"
    certificate = convert(source, ours, "mlm_jax")
    convert(ours, back, "hugging_face")
    first, last = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in last.items()
    }
    assert json.loads((ours / CERTIFICATE_FILE).read_text()) == certificate
    assert certificate["source"]["format"] == "hugging_face"
    assert certificate["source"]["tensors"] == len(first)
    assert certificate["target"]["tensors"] == len(load_file(ours / "model.safetensors"))
    assert certificate["target"]["parameters"] == sum(array.size for array in first.values())
    for folder, files in ((source, certificate["source"]["files"]), (ours, certificate["target"]["files"])):
        for name, checksum in files.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert set(certificate["target"]["files"]) == {
        "config.json",
        "model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.txt",
    }
    assert certificate["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_a_run_folder_converts(tmp_path: Path) -> None:
    run = uninterrupted()
    certificate = convert(run, tmp_path / "out", "hugging_face")
    assert certificate["source"]["name"] == run.name
    model = hugging_face.read(tmp_path / "out").model
    assert format_of(run).NAME == "mlm_jax"
    expected = format_of(run).read(run).model
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert model.tokenizer.fingerprint == expected.tokenizer.fingerprint


def test_the_certificate_of_a_checkpoint_names_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "mine")
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    monkeypatch.chdir(newest.parent)
    for number, source in enumerate((newest, newest.name)):
        certificate = convert(source, tmp_path / f"out{number}", "mlm_jax")
        assert certificate["source"]["name"] == f"mine/checkpoints/{newest.name}"


def modes_of_converted_files(tmp_path: Path, to: Any) -> set[int]:
    """Returns the permissions of the files of a conversion under the umask 027."""
    source = hugging_face_folder(tmp_path / "source", "BertForPreTraining")
    before = os.umask(0o027)
    try:
        convert(source, tmp_path / "out", to, Request(allow_random_pooler=True, change_conventions=True))
    finally:
        os.umask(before)
    return {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}


# google_tf needs TensorFlow: tests/peers/test_google_tf.py.
@pytest.mark.parametrize("to", sorted(FORMATS.keys() - {"google_tf"}))
def test_the_files_have_the_permissions_of_new_files(tmp_path: Path, to: str) -> None:
    assert modes_of_converted_files(tmp_path, to) == {0o640}


def test_padding_rows_of_the_vocabulary_are_removed(tmp_path: Path) -> None:
    run = uninterrupted()
    model = format_of(run).read(run).model
    padded = replace(model.config, vocabulary_multiple=64)
    assert padded.padded_vocabulary_size == 320
    from mlm_jax.formats.model_folder import flatten_params, nest_params, without_padded_rows

    flat = flatten_params(model.params)
    for path in ("encoder/embeddings/token", "head/bias"):
        width = [(0, 20)] + [(0, 0)] * (flat[path].ndim - 1)
        flat[path] = np.pad(flat[path], width, constant_values=7)
    config, params = without_padded_rows(padded, nest_params(flat))
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_a_model_without_a_head_needs_a_flag(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", "BertModel")
    with pytest.raises(InputError, match=r"no masked-LM head: --allow-random-head .* --backbone-only"):
        convert(source, tmp_path / "out", "mlm_jax")
    assert not (tmp_path / "out").exists()

    bare = convert(source, tmp_path / "bare", "mlm_jax", Request(backbone_only=True))
    assert set(read_model_folder(tmp_path / "bare").params) == {"encoder"}
    assert bare["changes"] == []
    convert(tmp_path / "bare", tmp_path / "back", "hugging_face", Request(backbone_only=True))
    assert (
        load_file(tmp_path / "back" / "model.safetensors").keys()
        == load_file(source / "model.safetensors").keys()
    )

    certificate = convert(source, tmp_path / "random", "mlm_jax", Request(allow_random_head=True))
    assert any("RANDOM" in change for change in certificate["changes"])
    model = read_model_folder(tmp_path / "random")
    assert set(model.params) == {"encoder", "head"}
    assert np.ptp(model.params["head"]["dense"]["kernel"]) > 0


def test_bfloat16(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source")
    certificate = convert(source, tmp_path / "out", "hugging_face", Request(dtype="bfloat16"))
    assert certificate["changes"] == ["float32 stored as bfloat16"]
    assert 0 < certificate["comparisons"]["change"]["max_difference"] < 0.5
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    for name, array in after.items():
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array, before[name].astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_convention_that_the_target_cannot_express_needs_a_flag(tmp_path: Path) -> None:
    convert(hugging_face_folder(tmp_path / "source"), tmp_path / "ours", "mlm_jax")
    model = read_model_folder(tmp_path / "ours")
    two_kinds = replace(model.config, activation="gelu_tanh", head_layer_norm_epsilon=1e-5)
    (tmp_path / "keras").mkdir()
    write_model_folder(tmp_path / "keras", replace(model, config=two_kinds))
    with pytest.raises(
        InputError, match=r"head_activation 'gelu' becomes 'gelu_tanh', head_layer_norm_epsilon 1e-05 becomes"
    ):
        convert(tmp_path / "keras", tmp_path / "out", "hugging_face")
    request = Request(change_conventions=True)
    certificate = convert(tmp_path / "keras", tmp_path / "out", "hugging_face", request)
    assert len(certificate["changes"]) == 2
    assert certificate["comparisons"]["change"]["max_difference"] > 1e-5
    assert hugging_face.read(tmp_path / "out").model.config.head_activation == "gelu_tanh"


def test_conventions_of_a_head_that_is_not_there_need_no_flag(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", "BertForSequenceClassification")
    model = hugging_face.read(source).model
    config = replace(model.config, head_activation="gelu_tanh", head_layer_norm_epsilon=1e-5)
    (tmp_path / "keras").mkdir()
    write_model_folder(tmp_path / "keras", replace(model, config=config))
    certificate = convert(tmp_path / "keras", tmp_path / "out", "hugging_face")
    assert certificate["changes"] == []
    np.testing.assert_array_equal(
        hugging_face.read(tmp_path / "out").model.params["classifier"]["kernel"],
        model.params["classifier"]["kernel"],
    )


def test_a_library_with_other_outputs_stops_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hugging_face_folder(tmp_path / "source")
    for error in (1e-3, np.nan):
        for asked in ("source", "target"):

            def answer(
                name: str, folder: Path, batch: dict, error: float = error, asked: str = asked
            ) -> Reference:
                right = conversion.our_outputs(hugging_face.read(folder).model, batch)
                wrong = (folder.name == "source") == (asked == "source")
                return Reference("transformers 0", right + error if wrong else right)

            monkeypatch.setattr(conversion, "ask_library", answer)
            with pytest.raises(InputError, match="transformers 0 computes outputs that differ from ours by"):
                convert(source, tmp_path / "out", "hugging_face")
            assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_last_line_of_a_librarys_error_has_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def outputs(*_: object) -> None:
        raise ValueError("wrong dtype\n\nTraceback:\n  File ops.py, line 1")

    monkeypatch.setattr(hugging_face, "outputs", outputs)
    np.savez(tmp_path / "batch.npz", token_ids=np.zeros(1))
    assert reference_outputs.main("hugging_face", "folder", str(tmp_path)) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "ValueError: wrong dtype Traceback: File ops.py, line 1"


def test_a_rejected_conversion_leaves_nothing(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there: already exists"):
        convert(source, tmp_path / "there", "mlm_jax")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(InputError, match="damaged or truncated"):
        convert(source, tmp_path / "out", "mlm_jax")
    with pytest.raises(InputError, match="nowhere: no such folder, and no built-in name"):
        convert("nowhere", tmp_path / "out", "mlm_jax")
    with pytest.raises(InputError, match=r"with its config file$"):
        convert(tmp_path / "there", tmp_path / "out", "mlm_jax")
    with pytest.raises(InputError, match=r"not a known model format: .*; source/ in it has one"):
        convert(tmp_path, tmp_path.parent / "out", "mlm_jax")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "there"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    source = hugging_face_folder(tmp_path / "source")
    monkeypatch.setattr(model_folder, "save_file", full)
    with pytest.raises(RunError, match="out: No space left on device; nothing was written"):
        convert(source, tmp_path / "out", "hugging_face")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hugging_face_folder(tmp_path / "source")
    save = model_folder.save_file

    def flip_a_sign(tensors: dict[str, np.ndarray], *arguments: object, **options: object) -> None:
        bias = "bert.encoder.layer.0.attention.self.key.bias"
        save(tensors | {bias: -tensors[bias]}, *arguments, **options)

    monkeypatch.setattr(model_folder, "save_file", flip_a_sign)
    with pytest.raises(RuntimeError, match="read back with differences"):
        convert(source, tmp_path / "out", "hugging_face")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_script(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", "BertModel")
    refused = run_script("convert_checkpoint", source, tmp_path / "out", "--to", "mlm_jax")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: the source has no masked-LM head")
    done = run_script(
        "convert_checkpoint", source, tmp_path / "out", "--to", "mlm_jax", "--allow-random-head"
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING: RANDOM" in done.stdout
    assert "parameters in 28 tensors" in done.stdout
