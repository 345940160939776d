"""Finding models: folders, built-in names, caches, and errors without a network."""

from pathlib import Path

import pytest

from mlm_jax.config.presets import PRESETS
from mlm_jax.errors import InputError
from mlm_jax.files.home import home
from mlm_jax.store.hub import find_model
from tests.formats.folders import hugging_face_folder
from tests.run_small import run_python


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_folder_has_precedence_over_a_built_in_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    Path("bert_base_zh").mkdir()
    assert find_model("bert_base_zh") == Path("bert_base_zh")


def test_a_built_in_name_is_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = home() / "models" / "bert_base_en"
    kept.mkdir(parents=True)
    assert find_model("bert_base_en") == kept
    monkeypatch.delenv("MLM_JAX_HOME")
    assert home() == Path("~/.cache/mlm_jax").expanduser()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_without_a_network_the_error_says_which_files_to_put_where(name: str) -> None:
    with pytest.raises(InputError) as refused:
        find_model(name)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(f"into {home() / 'models' / name}")
    assert f"put the files of https://kaggle.com/models/keras/bert/keras/{name}" in message or (
        "put config.json, vocab.txt and model.safetensors (or pytorch_model.bin) of https://huggingface.co/google"
        in message
    )


def test_without_weights_only_the_vocabulary_is_needed() -> None:
    with pytest.raises(
        InputError, match=r"; put vocab\.txt of https://huggingface\.co/google-bert/bert-base-cased"
    ):
        find_model("bert_base_en", weights=False)


def test_unknown_names_are_rejected() -> None:
    with pytest.raises(InputError, match="no built-in name; did you mean 'bert_tiny_en_uncased'"):
        find_model("bert_tiny_en_uncase")
    with pytest.raises(InputError, match="hf://nobody/nothing: not in the cache and not downloaded"):
        find_model("hf://nobody/nothing")
    with pytest.raises(InputError, match="kaggle://keras/bert/keras/other: "):
        find_model("kaggle://keras/bert/keras/other")


def test_cached_downloads_are_found_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    hugging_face_folder(repository / "snapshots" / ("a" * 40))
    code = "from mlm_jax.store.loading import load_model; print(load_model('hf://someone/something').config.hidden_dim)"
    ended = run_python(code)
    assert ended.stdout == "64\n", ended.stderr
