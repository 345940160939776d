"""Notes on the pooling of folders of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlm_jax.errors import InputError
from mlm_jax.formats.sentence_transformers import sentence_vectors_note
from mlm_jax.store.loading import load_model
from tests.formats.folders import hugging_face_folder


def write_modules(folder: Path, *names: str, **pooling: bool) -> None:
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    paths = ["", *(f"{index}_{name}" for index, name in enumerate(names[1:], start=1))]
    modules = [{"idx": i, "name": str(i), "path": paths[i], "type": kind} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | pooling))


@pytest.mark.parametrize(
    ("names", "modes", "told"),
    [
        (("Transformer", "Pooling"), {"cls_token": True, "mean_tokens": False}, "pooling 'cls'"),
        (("Transformer", "Pooling"), {"cls_token": False, "mean_tokens": True}, "pooling 'mean'"),
        (
            ("Transformer", "Pooling", "Dense", "Normalize"),
            {"mean_sqrt_len_tokens": True},
            "pooling 'mean_sqrt_len_tokens', followed by Dense, Normalize, which mlm_jax leaves out",
        ),
    ],
)
def test_the_pooling_of_a_folder_is_told(
    names: tuple[str, ...],
    modes: dict[str, bool],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = hugging_face_folder(tmp_path / "model", "BertModel")
    assert sentence_vectors_note(folder) is None
    write_modules(folder, *names, **{f"pooling_mode_{mode}": value for mode, value in modes.items()})
    load_model(folder)
    expected = f"{folder}: modules.json: sentence-transformers makes its vectors of texts by {told}"
    assert expected in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("modules", [{}, [1], [{"type": "a.Pooling", "path": "../../etc"}], [{"path": ""}]])
def test_other_modules_are_rejected(modules: Any, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"modules\.json: .* must be a module with a type and a path"):
        sentence_vectors_note(tmp_path)
