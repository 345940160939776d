"""Conversions compared with transformers: each side reads the other's files and has the same outputs."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file

from mlm_jax.errors import InputError
from mlm_jax.families import settings
from mlm_jax.files.checksums import write_checksums
from mlm_jax.formats import hugging_face
from mlm_jax.formats.model_folder import write_model_folder
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import ask_library, fixed_batch, largest_difference, our_outputs
from tests.formats.folders import GOLDEN_CONFIG, write_vocabulary
from tests.formats.test_hugging_face import ARCHITECTURES, assert_same_tensors

pytestmark = pytest.mark.peers


def published(folder: Path, architecture: str, **settings: Any) -> Path:
    """Makes a folder with `save_pretrained`, with random weights of realistic spread."""
    torch.manual_seed(0)
    shape = {name: value for name, value in GOLDEN_CONFIG.items() if name != "seed"} | settings
    model = getattr(transformers, architecture)(transformers.BertConfig(**shape))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.3 if "LayerNorm.weight" in name else 0.2 if name.endswith("bias") else 0.1
            weight.copy_(torch.randn_like(weight) * spread + ("LayerNorm.weight" in name))
    model.save_pretrained(folder)
    write_vocabulary(folder)
    return folder


def there_and_back(source: Path, folder: Path, request: Request) -> Path:
    """Converts to our format and back, checks the comparisons with transformers, and returns the new folder."""
    there = convert(source, folder / "ours", "mlm_jax", request)
    back = convert(folder / "ours", folder / "back", "hugging_face", request)
    for comparison in (there["comparisons"]["source"], back["comparisons"]["target"]):
        assert comparison["library"].startswith("transformers ")
        assert comparison["max_difference"] <= 1e-5
        assert comparison["largest_output"] > 0.5
    return folder / "back"


CASES = [
    *((architecture, {}) for architecture in ARCHITECTURES),
    ("BertForMaskedLM", {"tie_word_embeddings": False}),
    ("BertForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    ("BertForMaskedLM", {"hidden_act": "gelu_pytorch_tanh", "type_vocab_size": 1}),
]


@pytest.mark.parametrize(("architecture", "settings"), CASES)
def test_both_directions(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = published(tmp_path / "source", architecture, **settings)
    request = Request(backbone_only=architecture == "BertModel")
    back = there_and_back(source, tmp_path, request)
    if "tie_word_embeddings" not in settings:
        before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
        assert_same_tensors(after, before)


def test_transformers_reads_the_same_tokenizer(tmp_path: Path) -> None:
    convert(published(tmp_path / "source", "BertForMaskedLM"), tmp_path / "back", "hugging_face")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ours = hugging_face.read(tmp_path / "back").model.tokenizer
    text = "W5 w12,w100 Ünknown"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    assert tokenizer.mask_token_id == ours.mask_token_id


def test_transformers_finds_exactly_the_tensors_it_needs(tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        source = published(tmp_path / f"source{architecture}", architecture)
        target = tmp_path / f"target{architecture}"
        convert(source, target, "hugging_face", Request(backbone_only=architecture == "BertModel"))
        _, info = getattr(transformers, architecture).from_pretrained(target, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_equal_safetensors(dtype: str, zipped: bool, tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM")
    weights = transformers.BertForMaskedLM.from_pretrained(source).to(getattr(torch, dtype)).state_dict()
    torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (source / "model.safetensors").unlink()
    reading = hugging_face.read(source)
    assert {str(leaf.dtype) for leaf in reading.model.params["head"]["norm"].values()} == {dtype}
    # A state dict also has the tied decoder.
    assert set(reading.dropped) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    batch = fixed_batch(reading.model.config)
    reference = ask_library("hugging_face", source, batch)
    assert reference.outputs is not None
    assert largest_difference(our_outputs(reading.model, batch), reference.outputs, batch) <= 1e-5


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['TRAP']}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_other_pickles_are_rejected_and_never_run(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    source = published(tmp_path / "source", "BertForMaskedLM")
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    if writer == "torch":
        torch.save({"weight": _Trap()}, file)
    else:
        file.write_bytes(pickle.dumps({"weight": _Trap()}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin: refused"):
        convert(source, tmp_path / "out", "mlm_jax")
    torch.save({"weight": torch.ones(2), "step": 3}, file)
    with pytest.raises(InputError, match="must contain a dict of tensors and nothing else; found also step"):
        convert(source, tmp_path / "out", "mlm_jax")
    torch.save({"model_state_dict": {"weight": torch.ones(2)}, "step": 3}, file)
    with pytest.raises(
        InputError, match="; its weights are in 'model_state_dict', which must be saved alone"
    ):
        convert(source, tmp_path / "out", "mlm_jax")
    torch.save({"weight": torch.ones(100_000)}, file)
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(InputError, match="or damaged"):
        convert(source, tmp_path / "out", "mlm_jax")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


OLD_FOLDERS = {
    "no model_type": ("BertForMaskedLM", {}, ("model_type",)),
    "no architectures": ("BertForMaskedLM", {}, ("architectures",)),
    "neither, a classifier": ("BertForSequenceClassification", {}, ("model_type", "architectures")),
    "neither, a BertModel": ("BertModel", {}, ("model_type", "architectures")),
    "neither, both heads": ("BertForPreTraining", {}, ("model_type", "architectures")),
    "another class than the tensors": ("BertForPreTraining", {"architectures": ["BertForMaskedLM"]}, ()),
    "num_labels alone": ("BertForSequenceClassification", {"num_labels": 5}, ("id2label", "label2id")),
    "padded table": ("BertForMaskedLM", {"vocab_size": 216}, ()),
    "another head": ("BertForTokenClassification", {}, ()),
    "a Google config": ("BertForMaskedLM", {}, ("model_type", "architectures")),
}


@pytest.mark.parametrize("case", OLD_FOLDERS)
def test_transformers_agrees_on_old_folders(case: str, tmp_path: Path) -> None:
    architecture, changes, absent = OLD_FOLDERS[case]
    shape = {name: value for name, value in changes.items() if name != "architectures"}
    folder = published(tmp_path / "source", architecture, **shape)
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in absent}))
    if case == "a Google config":
        (folder / "config.json").rename(folder / "bert_config.json")
    reading = hugging_face.read(folder)
    batch = fixed_batch(reading.model.config)
    theirs = hugging_face.outputs(folder, batch)
    assert largest_difference(our_outputs(reading.model, batch), theirs, batch) <= 1e-5
    assert np.abs(theirs).max() > 0.5
    assert len(reading.notes) == (case in ("padded table", "neither, a classifier"))


def test_a_model_saved_by_data_parallel_is_compared(tmp_path: Path) -> None:
    folder = published(tmp_path / "source", "BertForSequenceClassification")
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    expected = hugging_face.outputs(folder, fixed_batch(hugging_face.read(folder).model.config))
    torch.save(torch.nn.DataParallel(model).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    read = hugging_face.read(folder).model
    batch = fixed_batch(read.config)
    np.testing.assert_array_equal(hugging_face.outputs(folder, batch), expected)
    assert largest_difference(our_outputs(read, batch), expected, batch) <= 1e-5


def test_a_checksum_file_does_not_matter_to_transformers(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM")
    target = tmp_path / "target"
    target.mkdir()
    hugging_face.write(hugging_face.read(source).model, target)
    write_checksums(target)
    first, second = (
        transformers.BertForMaskedLM.from_pretrained(folder).state_dict() for folder in (source, target)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(transformers.AutoTokenizer.from_pretrained(target)) == 211


def test_pickles_that_expand_or_are_compressed_are_refused(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM")
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    torch.save({"bert.embeddings.word_embeddings.weight": torch.ones(1, 1).expand(1 << 20, 1 << 14)}, file)
    with pytest.raises(InputError, match="would expand to 17,179,869,184 numbers"):
        hugging_face.read(source)
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "stored")
    with (
        zipfile.ZipFile(tmp_path / "stored") as stored,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin: .* is compressed: must be a file as torch writes it"
    ):
        hugging_face.read(source)


@pytest.mark.parametrize("kind", ["sparse", "quantized", "float8", "complex", "integers", "NaN"])
def test_tensors_that_are_no_weights_are_named(kind: str, tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM")
    state = transformers.BertForMaskedLM.from_pretrained(source).state_dict()
    name = "bert.encoder.layer.0.output.dense.bias"
    bias = state[name]
    state[name] = {
        "sparse": bias.to_sparse,
        "quantized": lambda: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
        "float8": lambda: bias.to(torch.float8_e4m3fn),
        "complex": lambda: bias.to(torch.complex64),
        "integers": lambda: bias.to(torch.int64),
        "NaN": lambda: torch.where(bias > 0, bias, torch.nan),
    }[kind]()
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=name):
        hugging_face.read(source)


def test_a_wrong_convention_is_found_by_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings._READ_ACTIVATIONS, "gelu_new", "gelu")
    source = published(tmp_path / "source", "BertForMaskedLM", hidden_act="gelu_new")
    with pytest.raises(InputError, match=r"transformers .* computes outputs that differ from ours"):
        convert(source, tmp_path / "out", "mlm_jax")


def test_a_folder_that_the_library_rejects_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM")
    model = hugging_face.read(source).model
    (tmp_path / "ours").mkdir()
    write_model_folder(tmp_path / "ours", model)
    monkeypatch.setitem(settings.ACTIVATIONS, "gelu", "no_such_activation")
    monkeypatch.setitem(settings._READ_ACTIVATIONS, "no_such_activation", "gelu")
    with pytest.raises(InputError, match="transformers does not accept it"):
        convert(tmp_path / "ours", tmp_path / "out", "hugging_face")
    assert not (tmp_path / "out").exists()
    assert np.isfinite(our_outputs(model, fixed_batch(model.config))).all()


def test_a_flipped_bit_in_a_pickle_is_found_by_the_checksums_of_its_file(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM")
    weights = {
        name: torch.from_numpy(array) for name, array in load_file(source / "model.safetensors").items()
    }
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    torch.save(weights, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin: damaged: .* does not match its checksum in the file"
    ):
        hugging_face.read(source)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(hugging_face.read(source).tensors) == len(weights)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "EOFError"),
        (b"<!DOCTYPE html>", "Unsupported operand 60"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_what_is_no_pickle_is_told_without_advice_to_run_it(
    content: bytes, cause: str, tmp_path: Path
) -> None:
    source = published(tmp_path / "source", "BertModel")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"pytorch_model\.bin: .*{cause}") as caught:
        hugging_face.read(source)
    assert "weights_only" not in str(caught.value)


def test_nested_tensors_are_refused(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertModel")
    (source / "model.safetensors").unlink()
    torch.save({"a": torch.nested.nested_tensor([torch.zeros(2)])}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="must contain a dict of tensors and nothing else"):
        hugging_face.read(source)
