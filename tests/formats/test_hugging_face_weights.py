"""Which file of a folder is read, and weights in several files."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict

from mlm_jax.errors import InputError
from mlm_jax.formats import hugging_face
from mlm_jax.formats.hugging_face_weights import are_of_torch, has_weights
from tests.formats.folders import hugging_face_folder, state_dict
from tests.formats.other_weights import WRITERS, flax_params, write_flax, write_tf_h5
from tests.formats.test_hugging_face import assert_same_tensors, written


def test_files_have_an_order(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in")
    for factor, (name, write) in enumerate(
        [("flax_model.msgpack", write_flax), ("tf_model.h5", write_tf_h5)], start=2
    ):
        write({key: array * factor for key, array in state_dict().items()}, folder / name)
    bias = state_dict()["cls.predictions.bias"]
    for factor, name in enumerate(["model.safetensors", "flax_model.msgpack", "tf_model.h5"], start=1):
        reading = hugging_face.read(folder)
        assert [file.name for file in reading.files] == [name]
        np.testing.assert_array_equal(reading.model.params["head"]["bias"], bias * factor)
        (folder / name).unlink()
    assert not has_weights(folder)
    names = r"model\.safetensors, pytorch_model\.bin, flax_model\.msgpack or tf_model\.h5"
    with pytest.raises(InputError, match=f"no weights: expected {names}$"):
        hugging_face.read(folder)
    (folder / "tf_model.h5.index.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"index\.json: TensorFlow's weights in several files are not supported"
    ):
        hugging_face.read(folder)


@pytest.mark.parametrize("kind", ["model.safetensors of Flax", "model.safetensors of TensorFlow"])
def test_safetensors_of_other_libraries(kind: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in")
    WRITERS[kind](state_dict(), folder / "model.safetensors")
    reading = hugging_face.read(folder)
    assert_same_tensors(written(reading, tmp_path / "out"), state_dict())
    assert not are_of_torch(reading.files)
    assert are_of_torch([tmp_path / "out" / "model.safetensors", folder / "pytorch_model.bin"])
    assert not are_of_torch([folder / "flax_model.msgpack"])


@pytest.mark.parametrize("name", ["flax_model.msgpack", "tf_model.h5"])
def test_folders_without_a_model_type_are_recognized(name: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", model_type=None)
    settings = json.loads((folder / "config.json").read_text())
    del settings["model_type"]
    (folder / "bert_config.json").write_text(json.dumps(settings))
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    assert not hugging_face.recognizes(folder)
    (folder / name).touch()
    assert hugging_face.recognizes(folder)


def flax_shards(folder: Path) -> Path:
    hugging_face_folder(folder)
    (folder / "model.safetensors").unlink()
    params = flax_params(state_dict())
    weight_map, names = {}, sorted(params)
    for number, part in enumerate((names[:20], names[20:]), start=1):
        file = f"flax_model-{number:05}-of-00002.msgpack"
        tree = unflatten_dict({name: params[name] for name in part}, sep="/")
        (folder / file).write_bytes(msgpack_serialize(tree))
        weight_map |= dict.fromkeys(part, file)
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_flax_weights_in_shards(tmp_path: Path) -> None:
    folder = flax_shards(tmp_path / "in")
    reading = hugging_face.read(folder)
    assert len(reading.files) == 2
    assert_same_tensors(written(reading, tmp_path / "out"), state_dict())
    index = json.loads((folder / "flax_model.msgpack.index.json").read_text())
    index["weight_map"]["bert/extra/kernel"] = "flax_model-00001-of-00002.msgpack"
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"tensor bert\.extra\.weight is not in flax_model-00001-of-00002"):
        hugging_face.read(folder)
    (folder / "flax_model-00002-of-00002.msgpack").unlink()
    with pytest.raises(InputError, match=r"flax_model-00002-of-00002\.msgpack: no such file"):
        hugging_face.read(folder)
