"""Makes hugging_face_bert.npz: the outputs of Hugging Face's BERT for the weights of weights.py.

    pip install torch transformers numpy
    python -m tests.golden.hugging_face_bert

Run from the repository root. Nothing is downloaded; see README.md for the keys.
"""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers

from tests.golden.weights import CONFIGS, hugging_face_state_dict

BATCH, LENGTH, POSITIONS = 3, 24, 8
REAL_LENGTHS = (24, 15, 9)
SECOND_SEGMENT_STARTS = (11, 6, 4)
FLOAT64_TOLERANCE = 5e-6


def make_inputs(config: dict) -> dict[str, np.ndarray]:
    """Token ids, padding mask, segment ids, all `[3, 24]`, and 8 ascending real positions per row, `[3, 8]`."""
    random = np.random.RandomState(config["seed"])
    padding_mask = np.arange(LENGTH) < np.array(REAL_LENGTHS)[:, None]
    token_ids = random.randint(1, config["vocab_size"], size=(BATCH, LENGTH)) * padding_mask
    segment_ids = (np.arange(LENGTH) >= np.array(SECOND_SEGMENT_STARTS)[:, None]) & padding_mask
    positions = [np.sort(random.permutation(length)[:POSITIONS]) for length in REAL_LENGTHS]
    return {
        "token_ids": token_ids.astype(np.int32),
        "padding_mask": padding_mask,
        "segment_ids": segment_ids.astype(np.int32),
        "positions": np.stack(positions).astype(np.int32),
    }


def load_model(config: dict) -> tuple[transformers.BertForMaskedLM, transformers.BertModel]:
    """The masked LM, and a `BertModel` with pooler of the same weights, in evaluation mode.

    Raises RuntimeError where a weight is unused or a parameter is left at Hugging Face's own initialisation.
    """
    settings = {name: value for name, value in config.items() if name != "seed"}
    bert_config = transformers.BertConfig(**settings, pad_token_id=0, attn_implementation="eager")
    weights = {name: torch.from_numpy(array) for name, array in hugging_face_state_dict(config).items()}

    encoder = transformers.BertModel(bert_config, add_pooling_layer=True).eval()
    encoder_weights = {n.removeprefix("bert."): w for n, w in weights.items() if n.startswith("bert.")}
    encoder.load_state_dict(encoder_weights, strict=True)

    masked_lm = transformers.BertForMaskedLM(bert_config).eval()
    tied = {
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }
    without_pooler = {n: w for n, w in weights.items() if not n.startswith("bert.pooler.")}
    masked_lm.load_state_dict(without_pooler | tied, strict=True)
    decoder = masked_lm.cls.predictions.decoder
    if decoder.weight is not masked_lm.bert.embeddings.word_embeddings.weight:
        raise RuntimeError("the decoder is not tied to the word embedding")
    return masked_lm, encoder


@torch.no_grad()
def run(config: dict, inputs: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Logits `[3, 8, vocabulary]` and hidden states `[3, 8, hidden]` at `positions`; pooled `[3, hidden]`."""
    masked_lm, encoder = (model.to(dtype) for model in load_model(config))
    arguments = {
        "input_ids": torch.from_numpy(inputs["token_ids"]).long(),
        "attention_mask": torch.from_numpy(inputs["padding_mask"]).long(),
        "token_type_ids": torch.from_numpy(inputs["segment_ids"]).long(),
    }
    rows, positions = np.arange(BATCH)[:, None], inputs["positions"]
    encoded = encoder(**arguments)
    return {
        "logits": masked_lm(**arguments).logits.numpy()[rows, positions],
        "last_hidden_state": encoded.last_hidden_state.numpy()[rows, positions],
        "pooled": encoded.pooler_output.numpy(),
    }


def main() -> None:
    """Compares float32 with float64 and writes the golden file next to this script."""
    golden = {
        "transformers_version": np.array(transformers.__version__),
        "torch_version": np.array(torch.__version__),
    }
    for name, config in CONFIGS.items():
        inputs = make_inputs(config)
        outputs = run(config, inputs, torch.float32)
        for key, reference in run(config, inputs, torch.float64).items():
            difference = float(np.abs(outputs[key] - reference).max())
            largest = float(np.abs(reference).max())
            print(f"{name}/{key}: float32 is off float64 by {difference:.1e}; largest value {largest:.2f}")
            if difference > FLOAT64_TOLERANCE:
                raise RuntimeError(f"{name}/{key}: above {FLOAT64_TOLERANCE}; make the weights smaller")
        golden |= {f"{name}/{key}": array for key, array in (inputs | outputs).items()}
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **golden)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
