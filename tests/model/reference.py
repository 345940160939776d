"""The encoder in plain NumPy and float64, layer by layer, and configs that cover every pair of settings."""

from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import erf

from mlm_jax.config.model import BertConfig

# The settings, and the changes of each of their choices; local rotary bases are added if both are chosen.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "norm": [{}, {"norm": "rms_norm"}],
    "norm_placement": [{}, {"norm_placement": "pre"}],
    "embedding_norm": [{}, {"embedding_norm": False}],
    "embedding_dropout": [{}, {"embedding_dropout": False}],
    "biases": [{}, {"biases": False}],
    "positions": [{}, {"positions": "rotary", "rotary_base": 500.0}, {"positions": "none"}],
    "segments": [{}, {"num_segments": 0}],
    "activation": [{}, *({"activation": kind} for kind in ("gelu_tanh", "geglu", "swiglu"))],
    "window": [{}, {"local_attention_window": 6, "global_attention_every": 2}],
    "head": [{}, {"tie_embeddings": False, "head_activation": "gelu_tanh"}],
}
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 4, 1), (2, 2, 2)]


def covering_set() -> list[tuple[dict[str, Any], tuple[int, int, int]]]:
    """Changes of a BertConfig, each with a mesh, so that any two choices of settings or mesh occur together."""
    factors = [list(range(len(choices))) for choices in VARIANTS.values()] + [list(range(len(MESHES)))]
    missing = {
        (a, x, b, y) for a, b in combinations(range(len(factors)), 2) for x in factors[a] for y in factors[b]
    }
    random, rows = np.random.RandomState(0), []
    while missing:
        tried = [[int(random.choice(choices)) for choices in factors] for _ in range(200)]
        best = max(tried, key=lambda row: len(missing & _pairs(row)))
        missing -= _pairs(best)
        rows.append(best)
    return [(_changes(row), MESHES[row[-1]]) for row in rows]


def _pairs(row: list[int]) -> set[tuple[int, int, int, int]]:
    return {(a, row[a], b, row[b]) for a, b in combinations(range(len(row)), 2)}


def _changes(row: list[int]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for choices, index in zip(VARIANTS.values(), row, strict=False):
        changes |= choices[index]
    if "rotary_base" in changes and "local_attention_window" in changes:
        changes["local_rotary_base"] = 50.0
    return changes


# What other families have, each with a mesh; the settings go together as in the family.
_ROTARY_PRE_NORM = {"norm_placement": "pre", "positions": "rotary", "num_segments": 0}
OF_FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "albert": ({"embedding_dim": 8, "shared_layers": True, "tie_embeddings": False}, (2, 2, 2)),
    "mpnet": ({"relative_position_buckets": 8, "position_offset": 2, "num_segments": 0}, (2, 2, 2)),
    "esm": (_ROTARY_PRE_NORM | {"mask_dropout_id": 4, "embedding_dropout": False}, (1, 8, 1)),
    "modernbert": (
        _ROTARY_PRE_NORM
        | {"first_attention_norm": False, "biases": False, "activation": "geglu"}
        | {"local_attention_window": 6, "global_attention_every": 3},
        (1, 1, 8),
    ),
    "gte": ({"positions": "rotary", "activation": "geglu", "feed_forward_biases": "down"}, (1, 8, 1)),
    "nomic": (
        {"positions": "rotary", "activation": "swiglu", "attention_biases": False}
        | {"feed_forward_biases": "none"},
        (8, 1, 1),
    ),
    "eurobert": (
        _ROTARY_PRE_NORM
        | {"num_key_value_heads": 1, "head_transform": False, "norm": "rms_norm", "embedding_norm": False}
        | {"biases": False, "activation": "swiglu", "tie_embeddings": False},
        (2, 4, 1),
    ),
}

# All at once.
EVERYTHING = _changes([1, 1, 1, 1, 1, 1, 1, 3, 1, 1])


def name_of(changes: dict[str, Any]) -> str:
    return "-".join(str(value) for value in changes.values()) or "bert"


def count_by_hand(c: BertConfig, *, pooler: bool, mlm_head: bool) -> int:
    """Number of parameters of an encoder, by explicit formulas."""
    width, narrow, bias = c.hidden_dim, c.embedding_dim or c.hidden_dim, int(c.biases)
    of_norm = 1 + (bias if c.norm == "layer_norm" else 0)
    norm = width * of_norm
    keys = width * (c.num_key_value_heads or c.num_heads) // c.num_heads
    of_attention, of_up, of_down = (
        bias and int(c.attention_biases),
        bias and int(c.feed_forward_biases == "all"),
        bias and int(c.feed_forward_biases != "none"),
    )
    attention = 2 * (width * width + of_attention * width) + 2 * (width * keys + of_attention * keys)
    up = width * c.intermediate_dim + of_up * c.intermediate_dim
    down = c.intermediate_dim * width + of_down * width
    layer = attention + (2 if c.activation in ("geglu", "swiglu") else 1) * up + down + 2 * norm
    tables = c.vocabulary_size + c.num_segments
    tables += c.position_offset + c.max_sequence_length if c.positions == "learned" else 0
    encoder = tables * narrow + (narrow * of_norm if c.embedding_norm else 0)
    encoder += (1 if c.shared_layers else c.num_layers) * layer
    encoder += (narrow + 1) * width if c.embedding_dim else 0
    encoder += c.relative_position_buckets * c.num_heads
    encoder += norm if c.norm_placement == "pre" else 0
    transform = width * narrow + bias * narrow + narrow * of_norm + c.vocabulary_size
    head = transform * c.head_transform + (0 if c.tie_embeddings else c.vocabulary_size * narrow)
    pooled = width * width + bias * width
    return encoder + pooler * pooled + mlm_head * head


def encode(
    c: BertConfig,
    params: dict[str, Any],
    ids: np.ndarray,
    padding_mask: np.ndarray,
    segment_ids: np.ndarray | None = None,
    document_ids: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the last hidden states, float64 [B, L, D]; `params` are those of the encoder."""
    embeddings, layers = params["embeddings"], params["layers"]
    x = embeddings["token"][ids]
    if c.mask_dropout_id is not None:
        x = x * _mask_dropout_scale(c.mask_dropout_id, ids, padding_mask, document_ids)
    if "segment" in embeddings:
        x = x + embeddings["segment"][np.zeros_like(ids) if segment_ids is None else segment_ids]
    if c.positions == "learned":
        x = x + embeddings["position"][c.position_offset : c.position_offset + ids.shape[1]]
    if c.embedding_norm:
        x = _norm(c, x, embeddings["norm"])
    if c.embedding_dim is not None:
        x = x @ embeddings["projection"]["kernel"] + embeddings["projection"]["bias"]
    bias = _relative_bias(c, params["relative_bias"], ids.shape[1]) if c.relative_position_buckets else 0.0
    position = np.arange(ids.shape[1])
    for index in range(c.num_layers):
        layer = _layer(layers, 0 if c.shared_layers else index)
        is_local = c.local_attention_window is not None and index % c.global_attention_every != 0
        mask = np.broadcast_to(padding_mask[:, None, :], (*ids.shape, ids.shape[1]))
        if document_ids is not None:
            mask = mask & (document_ids[:, :, None] == document_ids[:, None, :])
        if is_local:
            mask = mask & (np.abs(position[:, None] - position) <= c.local_attention_window // 2)
        base = c.local_rotary_base if is_local and c.local_rotary_base is not None else c.rotary_base

        def attention(x: np.ndarray, layer: Any = layer, mask: Any = mask, base: float = base) -> np.ndarray:
            return _attention(c, x, layer["attention"], mask, base, bias)

        def feed_forward(x: np.ndarray, layer: Any = layer) -> np.ndarray:
            return _feed_forward(c, x, layer["feed_forward"])

        for part, norm in (
            (attention, layer["attention_norm"]),
            (feed_forward, layer["feed_forward_norm"]),
        ):
            if c.norm_placement == "post":
                x = _norm(c, x + part(x), norm)
            elif index == 0 and part is attention and not c.first_attention_norm:
                x = x + part(x)
            else:
                x = x + part(_norm(c, x, norm))
    return _norm(c, x, params["final_norm"]) if c.norm_placement == "pre" else x


def _layer(stacked: Any, index: int) -> Any:
    if isinstance(stacked, dict):
        return {name: _layer(value, index) for name, value in stacked.items()}
    return stacked[index]


def _norm(c: BertConfig, x: np.ndarray, params: Any) -> np.ndarray:
    if c.norm == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.layer_norm_epsilon)
    return x * params["scale"] + params.get("bias", 0.0)


def _mask_dropout_scale(
    mask_id: int, ids: np.ndarray, padding_mask: np.ndarray, document_ids: np.ndarray | None
) -> np.ndarray:
    """Scale of each embedding: 0 at masks; elsewhere, as many as in training divided by as many as are left."""
    documents = np.zeros_like(ids) if document_ids is None else document_ids
    scale = np.zeros((*ids.shape, 1))
    for row, column in np.ndindex(ids.shape):
        text = padding_mask[row] & (documents[row] == documents[row, column])
        if ids[row, column] != mask_id and text.any():
            scale[row, column] = 0.88 / (1 - (ids[row, text] == mask_id).mean())
    return scale


def _relative_bias(c: BertConfig, table: np.ndarray, length: int) -> np.ndarray:
    """Bias of every head, query and key, by their distance."""
    half = c.relative_position_buckets // 2
    exact = half // 2
    bias = np.zeros((c.num_heads, length, length))
    for query, key in np.ndindex(length, length):
        away = abs(query - key)
        if away >= exact:
            away = min(half - 1, exact + int(np.log(away / exact) / np.log(128 / exact) * (half - exact)))
        bias[:, query, key] = table[away + (half if key > query else 0)]
    return bias


def _attention(
    c: BertConfig, x: np.ndarray, params: Any, mask: np.ndarray, base: float, bias: np.ndarray | float
) -> np.ndarray:
    query, key, value = (
        np.einsum("bld,dhk->bhlk", x, params[name]["kernel"])
        + np.expand_dims(params[name].get("bias", np.zeros(1)), -2)
        for name in ("query", "key", "value")
    )
    if c.positions == "rotary":
        query, key = _rotated(query, base), _rotated(key, base)
    groups = c.num_heads // key.shape[1]
    key, value = np.repeat(key, groups, axis=1), np.repeat(value, groups, axis=1)
    scores = np.einsum("bhlk,bhsk->bhls", query, key) / np.sqrt(c.head_dim) + bias
    scores = np.where(mask[:, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    attended = np.einsum("bhls,bhsk->blhk", weights, value)
    return np.einsum("blhk,hkd->bld", attended, params["output"]["kernel"]) + params["output"].get("bias", 0)


def _rotated(x: np.ndarray, base: float) -> np.ndarray:
    """Rotates by products of complex numbers, as in the paper."""
    half = x.shape[-1] // 2
    turns = np.exp(1j * np.outer(np.arange(x.shape[-2]), base ** (-np.arange(half) / half)))
    turned = (x[..., :half] + 1j * x[..., half:]) * turns
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _feed_forward(c: BertConfig, x: np.ndarray, params: Any) -> np.ndarray:
    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ params[name]["kernel"] + params[name].get("bias", 0.0)

    gelu = {
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "swiglu": lambda x: x / (1 + np.exp(-x)),
    }.get(c.activation, lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))))
    if c.activation in ("geglu", "swiglu"):
        return linear("down", gelu(linear("gate", x)) * linear("up", x))
    return linear("down", gelu(linear("up", x)))
