"""Links to nothing, as in a copy of part of a hub's cache, are named instead of counting as absent files."""

import re
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.store.format_registry import read_model
from mlm_jax.text.tokenizer import Tokenizer
from tests.formats.folders import hugging_face_folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "vocab.txt", "model.safetensors"])
def test_a_link_to_nothing_is_named(name: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/abc")
    message = f"^{re.escape(str(folder / name))}: is a link to ../blobs/abc, which does not exist"
    with pytest.raises(InputError, match=message):
        read_model(folder)
    if name != "model.safetensors":
        with pytest.raises(InputError, match=message):
            Tokenizer.load(folder)


def test_weights_of_another_library_may_be_a_link_to_nothing(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model")
    (folder / "pytorch_model.bin").symlink_to("../blobs/abc")
    assert read_model(folder).model.params
