"""Makes folders in Hugging Face's format from the golden weights, without its library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.golden.weights import CONFIGS, hugging_face_state_dict

GOLDEN_CONFIG = CONFIGS["A"]


def state_dict(architecture: str = "BertForMaskedLM") -> dict[str, np.ndarray]:
    """Returns every tensor of that class, with a realistic spread."""
    state = hugging_face_state_dict(GOLDEN_CONFIG)
    hidden, random = GOLDEN_CONFIG["hidden_size"], np.random.RandomState(3)
    heads = {
        "cls.seq_relationship": ("BertForPreTraining", 2),
        "classifier": ("BertForSequenceClassification", 3),
    }
    for name, (owner, classes) in heads.items():
        if architecture == owner:
            state[f"{name}.weight"] = random.standard_normal((classes, hidden)).astype(np.float32)
            state[f"{name}.bias"] = random.standard_normal(classes).astype(np.float32)
    if architecture == "BertForMaskedLM":
        return {name: array for name, array in state.items() if ".pooler." not in name}
    if architecture in ("BertModel", "BertForSequenceClassification"):
        state = {name: array for name, array in state.items() if not name.startswith("cls.")}
    if architecture == "BertModel":
        state = {name.removeprefix("bert."): array for name, array in state.items()}
    return state


def hugging_face_folder(
    folder: Path,
    architecture: str = "BertForMaskedLM",
    *,
    tensors: dict[str, np.ndarray] | None = None,
    **settings: Any,
) -> Path:
    """Makes a folder with config.json, model.safetensors and vocab.txt; `settings` change the config."""
    folder.mkdir()
    config = {name: value for name, value in GOLDEN_CONFIG.items() if name != "seed"}
    config |= {"model_type": "bert", "architectures": [architecture]}
    if architecture == "BertForSequenceClassification":
        config["id2label"] = {"0": "sad", "1": "neutral", "2": "glad"}
    (folder / "config.json").write_text(json.dumps(config | settings))
    save_file(state_dict(architecture) if tensors is None else tensors, folder / "model.safetensors")
    write_vocabulary(folder)
    return folder


def write_vocabulary(folder: Path, size: int = GOLDEN_CONFIG["vocab_size"]) -> None:
    """Writes a BERT vocab.txt with that many entries."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{index}" for index in range(size - len(special))]
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in special + words))
