"""Problem types of classifiers: read, written, and kept or refused by conversions."""

import json
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.loading import load_model
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.use.text_classifier import TextClassifier
from tests.formats.folders import hugging_face_folder

CLASS = "BertForSequenceClassification"


@pytest.fixture(autouse=True)
def _libraries_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))


@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
def test_conversions_keep_the_problem_type(problem_type: str | None, tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", CLASS, problem_type=problem_type)
    convert(source, tmp_path / "ours", "mlm_jax")
    convert(tmp_path / "ours", tmp_path / "back", "hugging_face")
    for folder in (source, tmp_path / "ours", tmp_path / "back"):
        assert load_model(folder).problem_type == problem_type
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written.get("problem_type") == problem_type
    assert written["id2label"] == {"0": "sad", "1": "neutral", "2": "glad"}
    # The encoder alone has neither classes nor a type.
    convert(source, tmp_path / "encoder", "hugging_face", Request(backbone_only=True))
    assert not {"problem_type", "id2label"} & set(
        json.loads((tmp_path / "encoder" / "config.json").read_text())
    )


@pytest.mark.parametrize("kind", ["hugging_face", "mlm_jax", "keras_hub"])
def test_a_random_classifier_has_the_classes_of_the_folder(kind: str, tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", CLASS, problem_type="multi_label_classification")
    convert(source, tmp_path / kind, kind, Request(change_conventions=True))
    real, drawn = load_model(tmp_path / kind), load_model(tmp_path / kind, load_weights=False)
    assert (drawn.labels, drawn.problem_type) == (real.labels, real.problem_type)
    assert drawn.config == real.config
    kernels = [model.params["classifier"]["kernel"] for model in (real, drawn)]
    assert kernels[0].shape == kernels[1].shape
    assert (kernels[0] != kernels[1]).any()
    fresh = [TextClassifier.from_preset(tmp_path / kind, load_weights=False, seed=seed) for seed in (0, 1)]
    assert fresh[0].labels == real.labels
    assert (fresh[0].params["classifier"]["kernel"] == kernels[1]).all()
    assert (fresh[0].params["classifier"]["kernel"] != fresh[1].params["classifier"]["kernel"]).any()


@pytest.mark.parametrize("count", [0, -1, 10**12, 2.5, "3", True])
def test_impossible_numbers_of_classes_are_refused_without_weights(count: object, tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", CLASS, num_labels=count)
    (source / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"config\.json: num_labels = .*: must be a whole number from 1 to"):
        load_model(source, load_weights=False)


def test_unknown_problem_types_are_rejected(tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", CLASS, problem_type="ranking")
    with pytest.raises(
        InputError, match=r"config\.json: problem_type 'ranking' is not supported: must be one of"
    ):
        load_model(source)
    hugging_face_folder(tmp_path / "right", CLASS)
    convert(tmp_path / "right", tmp_path / "ours", "mlm_jax")
    config = tmp_path / "ours" / "config.json"
    config.write_text(config.read_text().replace('"problem_type": null', '"problem_type": ["regression"]'))
    with pytest.raises(InputError, match="problem_type"):
        load_model(tmp_path / "ours")


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_a_target_without_problem_types_is_refused(
    problem_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back without the type stands for a format that cannot express it, such as Google's."""
    source = hugging_face_folder(tmp_path / "source", CLASS, problem_type=problem_type)
    original = conversion.FORMATS["mlm_jax"].write

    def write(model: object, folder: Path) -> int:
        count = original(model, folder)
        config = folder / "config.json"
        config.write_text(config.read_text().replace(f'"{problem_type}"', "null"))
        return count

    monkeypatch.setattr(conversion.FORMATS["mlm_jax"], "write", write)
    with pytest.raises(InputError, match=f"mlm_jax cannot express problem_type = '{problem_type}'"):
        convert(source, tmp_path / "ours", "mlm_jax")
    assert not (tmp_path / "ours").exists()
