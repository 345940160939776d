"""Weights for the golden BERTs, a function of the parameter's name, so that they need not be stored.

The script that makes the golden file and the test that reads it both call `hugging_face_state_dict`.
"""

from zlib import crc32

import numpy as np

# Vocabularies are prime and no two tables have the same size, so that mixing up two of them is noticed.
CONFIGS: dict[str, dict] = {
    "A": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 211,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "seed": 1,
    },
    "B": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "vocab_size": 307,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "seed": 2,
    },
}
# A again under the other two conventions: tanh GELU and a LayerNorm epsilon large enough to show.
CONFIGS["C"] = CONFIGS["A"] | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}


def parameter_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of Hugging Face's `BertForMaskedLM` with `BertModel`'s pooler.

    Kernels are `[out, in]`, as torch stores them. The output embedding is tied to the input embedding and is
    therefore listed once, under its input name; its bias is `cls.predictions.bias`.
    """
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out_size: int, in_size: int) -> None:
        shapes[f"{name}.weight"] = (out_size, in_size)
        shapes[f"{name}.bias"] = (out_size,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = (hidden,)
        shapes[f"{name}.bias"] = (hidden,)

    shapes["bert.embeddings.word_embeddings.weight"] = (vocabulary, hidden)
    shapes["bert.embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], hidden)
    shapes["bert.embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], hidden)
    layer_norm("bert.embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{index}"
        for projection in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{projection}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", config["intermediate_size"], hidden)
        linear(f"{layer}.output.dense", hidden, config["intermediate_size"])
        layer_norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("cls.predictions.transform.dense", hidden, hidden)
    layer_norm("cls.predictions.transform.LayerNorm")
    shapes["cls.predictions.bias"] = (vocabulary,)
    return shapes


def hugging_face_state_dict(config: dict) -> dict[str, np.ndarray]:
    """Float32 arrays under Hugging Face's names, for one of `CONFIGS`.

    Each array comes from its own generator, seeded by its name and the config's seed: the order in which a
    reader asks for them does not matter. All biases and LayerNorm gains are unequal and none is at its
    customary 0 or 1, so that swapping, dropping or transposing any one of them changes the logits; only the
    key biases cannot show, since they add the same number to every score of a query and softmax removes it.
    """
    state = {}
    for name, shape in parameter_shapes(config).items():
        # RandomState and not default_rng: its stream is frozen by NumPy's compatibility policy (NEP 19).
        noise = np.random.RandomState(crc32(name.encode()) ^ config["seed"]).standard_normal(shape)
        if name.endswith("LayerNorm.weight"):
            array = 1 + 0.3 * noise
        elif name.endswith("bias"):
            array = 0.2 * noise
        else:
            array = 0.1 * noise
        state[name] = array.astype(np.float32)
    return state
