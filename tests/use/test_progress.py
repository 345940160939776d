"""Progress on stderr: shown on a terminal if requested, and never otherwise."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from mlm_jax.store import conversion
from mlm_jax.store.conversion import convert
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.use.evaluate import evaluate_model
from mlm_jax.use.features_file import extract_features
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier
from tests.formats.folders import hugging_face_folder
from tests.run_small import prepared, uninterrupted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:

    def at_once(**options: Any) -> tqdm:
        return tqdm(**(options | {"delay": 0, "mininterval": 0}))

    monkeypatch.setattr("mlm_jax.corpus.progress.tqdm", at_once)
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))


def evaluate(tmp_path: Path, progress: bool) -> None:
    evaluate_model(uninterrupted(), prepared(200, 240), progress=progress)


def features(tmp_path: Path, progress: bool) -> None:
    model = MaskedLM.from_preset(uninterrupted())
    extract_features(model, ["a place"] * 3, tmp_path / "features.npz", progress=progress)


def likelihoods(tmp_path: Path, progress: bool) -> None:
    model = MaskedLM.from_preset(uninterrupted())
    model.progress = progress
    model.pseudo_log_likelihood(["a place"])


def predictions(tmp_path: Path, progress: bool) -> None:
    classifier = TextClassifier.from_preset(
        hugging_face_folder(tmp_path / "in", "BertForSequenceClassification")
    )
    classifier.progress = progress
    classifier.evaluate(["w1", "w2"], [0, 1])
    classifier.predict(["w1", "w2"])


def conversions(tmp_path: Path, progress: bool) -> None:
    convert(hugging_face_folder(tmp_path / "in"), tmp_path / "out", "mlm_jax", progress=progress)


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (evaluate, "row/s"),
        (features, "3text"),
        pytest.param(likelihoods, "row/s", marks=pytest.mark.slow),
        pytest.param(predictions, "2/2", marks=pytest.mark.slow),
        pytest.param(conversions, "5/6 reading back", marks=pytest.mark.slow),
    ],
)
def test_progress_is_shown_only_if_requested(
    call: Callable[[Path, bool], None], shown: str, tmp_path: Path
) -> None:
    written = {}
    for stderr, progress in ((Terminal(), True), (Terminal(), False), (io.StringIO(), True)):
        folder = tmp_path / str(len(written))
        folder.mkdir()
        with contextlib.redirect_stderr(stderr):
            call(folder, progress)
        written[type(stderr), progress] = stderr.getvalue()
    assert shown in written.pop((Terminal, True))
    assert set(written.values()) == {""}
