"""Finding models: folders, built-in names, caches, and errors without a network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from mlm_jax.config import TrainConfig
from mlm_jax.config.files import load_config
from mlm_jax.config.presets import PRESETS
from mlm_jax.errors import InputError
from mlm_jax.files.home import home
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.hub import find_model
from mlm_jax.store.loading import load_model
from mlm_jax.store.reference_outputs import Reference
from tests.formats.folders import hugging_face_folder
from tests.run_small import run_python


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_name_that_cannot_be_one_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hugging_face_folder(tmp_path / "here"))
    for name, message in (
        ("", "^'': must be the name"),
        ("The lake is [MASK]. " * 20, "^The lake .*…: must be the name"),
    ):
        with pytest.raises(InputError, match=message):
            find_model(name)
    for source in (lambda: load_config(""), lambda: TrainConfig(init_from="")):
        with pytest.raises(InputError, match="must be the name of a"):
            source()


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


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.keras").touch()
    with pytest.raises(InputError, match=r"model\.keras: is a file; must be the folder of a model"):
        find_model(tmp_path / "model.keras")


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulates the hub: repositories are folders HUB/user/model@revision, filtered as by the real library."""

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        source = tmp_path / "hub" / f"{repository}@{revision or 'main'}"
        if not source.is_dir():
            raise FileNotFoundError(f"no {source.name}")
        target = tmp_path / "cache" / source.name
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
        target.mkdir(parents=True, exist_ok=True)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_revisions_and_subfolders(hub: Path) -> None:
    (hub / "user").mkdir()
    hugging_face_folder(hub / "user" / "model@main")
    hugging_face_folder(hub / "user" / "model@main" / "sub").rename(hub / "user" / "model@main" / "a")
    for revision, epsilon in (("v1.0", 1e-5), ("refs-pr-1", 1e-6)):
        hugging_face_folder(hub / "user" / f"model@{revision}", layer_norm_eps=epsilon)
    assert load_model("hf://user/model").config.layer_norm_epsilon == 1e-12
    assert load_model("hf://user/model@v1.0").config.layer_norm_epsilon == 1e-5
    assert load_model("hf://user/model@refs-pr-1").config.layer_norm_epsilon == 1e-6
    found = find_model("hf://user/model/a")
    assert found.name == "a"
    assert (found / "model.safetensors").is_file()
    with pytest.raises(InputError, match=r"hf://user/model@v2: not in the cache and not downloaded"):
        find_model("hf://user/model@v2")
    with pytest.raises(InputError, match=r"hf://user/model/b@v1\.0: user/model has no folder b"):
        find_model("hf://user/model/b@v1.0")


@pytest.mark.parametrize(
    "name", ["user/model@", "user//model", "../model", "user/model/../..", "", "user/mo*del"]
)
def test_names_on_the_hub_are_checked(name: str, hub: Path) -> None:
    with pytest.raises(
        InputError, match=r"must be hf://user/model, hf://user/model/sub/folder, or one of them with"
    ):
        find_model(f"hf://{name}")


@pytest.mark.parametrize("to", ["keras_hub", "mlm_jax"])
def test_every_format_is_downloaded(
    to: conversion.FormatName, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))
    request = Request(change_conventions=True)
    source = hugging_face_folder(tmp_path / "source", "BertForPreTraining")
    convert(source, hub / "user" / "model@main", to, request)
    (hub / "user" / "model@main" / "tf_model.h5").write_bytes(b"not needed")
    model = load_model("hf://user/model")
    assert "head" in model.params
    assert not (tmp_path / "cache" / "model@main" / "tf_model.h5").exists()
    assert load_model("hf://user/model", load_weights=False).config == model.config


def test_weights_are_downloaded_in_one_format(hub: Path, tmp_path: Path) -> None:
    (hub / "user").mkdir()
    folder = hugging_face_folder(hub / "user" / "model@main")
    kinds = [
        ["model.safetensors"],
        ["pytorch_model.bin"],
        ["flax_model.msgpack"],
        ["tf_model.h5"],
        ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"],
    ]
    for name in ["big.h5", *(name for kind in kinds[1:] for name in kind)]:
        (folder / name).touch()
    for kind in kinds:
        found = find_model("hf://user/model")
        assert {path.name for path in found.iterdir()} == {"config.json", "vocab.txt", *kind}
        shutil.rmtree(tmp_path / "cache")
        for name in kind:
            (folder / name).unlink()
