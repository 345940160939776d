"""Small versions of the shipped configs have the outputs of ModernBERT, RoBERTa and Llama in transformers.

Our layers are stacked, so the first one has an attention norm like the others. ModernBERT has an Identity in its place,
which the tests replace by a LayerNorm.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlm_jax.config.files import load_config
from mlm_jax.config.model import BertConfig
from mlm_jax.formats.model_folder import nest_params
from mlm_jax.model.bert import BertMaskedLM, count_parameters
from mlm_jax.model.encoder_layer import FeedForward
from mlm_jax.model.layers import RMSNorm, split_model

pytestmark = pytest.mark.peers

CONFIGS = Path(__file__).parents[2] / "configs"
LENGTH, ROWS = 40, 3
LENGTHS = np.array([LENGTH, 31, 17])

MODERN = replace(
    load_config(CONFIGS / "modernbert_base.py").model,
    vocabulary_size=211,
    num_layers=5,
    hidden_dim=48,
    num_heads=4,
    intermediate_dim=72,
    max_sequence_length=64,
    local_attention_window=8,
)
ROBERTA = replace(
    load_config(CONFIGS / "roberta_base.py").model,
    vocabulary_size=211,
    num_layers=3,
    hidden_dim=48,
    num_heads=4,
    intermediate_dim=96,
    max_sequence_length=64,
)


def random_weights(module: Any) -> Any:
    """Sets weights of realistic spread, none at its initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            is_scale = "norm" in name.lower() and name.endswith("weight")
            spread = 0.3 if is_scale else 0.2 if name.endswith("bias") else 0.25
            weight.copy_(torch.randn_like(weight) * spread + is_scale)
    return module.eval()


def modernbert(config: BertConfig) -> Any:
    model = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_dim,
            intermediate_size=config.intermediate_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_sequence_length,
            local_attention=config.local_attention_window,
            pad_token_id=0,
            attn_implementation="eager",
        )
    )
    model.model.layers[0].attn_norm = torch.nn.LayerNorm(config.hidden_dim, eps=1e-5, bias=False)
    return random_weights(model)


def roberta(config: BertConfig) -> Any:
    return random_weights(
        transformers.RobertaForMaskedLM(
            transformers.RobertaConfig(
                vocab_size=config.vocabulary_size,
                hidden_size=config.hidden_dim,
                intermediate_size=config.intermediate_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                max_position_embeddings=config.max_sequence_length + 2,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                attn_implementation="eager",
            )
        )
    )


def stacked(arrays: list[Any]) -> np.ndarray:
    return np.stack([array.detach().numpy() for array in arrays])


def parameters_of_modernbert(model: Any, config: BertConfig) -> dict[str, Any]:
    heads, width, layers = (config.num_heads, config.head_dim), config.hidden_dim, model.model.layers
    qkv = stacked([layer.attn.Wqkv.weight for layer in layers]).reshape(-1, 3, *heads, width)
    flat = {
        f"encoder/layers/attention/{name}/kernel": qkv[:, index].transpose(0, 3, 1, 2)
        for index, name in enumerate(("query", "key", "value"))
    }
    output = stacked([layer.attn.Wo.weight.T for layer in layers]).reshape(-1, *heads, width)
    # The gate comes first.
    gate, up = np.split(stacked([layer.mlp.Wi.weight.T for layer in layers]), 2, axis=-1)
    return nest_params(
        flat
        | {
            "encoder/layers/attention/output/kernel": output,
            "encoder/layers/attention_norm/scale": stacked([layer.attn_norm.weight for layer in layers]),
            "encoder/layers/feed_forward_norm/scale": stacked([layer.mlp_norm.weight for layer in layers]),
            "encoder/layers/feed_forward/gate/kernel": gate,
            "encoder/layers/feed_forward/up/kernel": up,
            "encoder/layers/feed_forward/down/kernel": stacked([layer.mlp.Wo.weight.T for layer in layers]),
            "encoder/embeddings/token": model.model.embeddings.tok_embeddings.weight.detach().numpy(),
            "encoder/embeddings/norm/scale": model.model.embeddings.norm.weight.detach().numpy(),
            "encoder/final_norm/scale": model.model.final_norm.weight.detach().numpy(),
            "head/dense/kernel": model.head.dense.weight.detach().numpy().T,
            "head/norm/scale": model.head.norm.weight.detach().numpy(),
            "head/bias": model.decoder.bias.detach().numpy(),
        }
    )


def parameters_of_roberta(model: Any, config: BertConfig) -> dict[str, Any]:
    heads, width, layers = (config.num_heads, config.head_dim), config.hidden_dim, model.roberta.encoder.layer
    flat: dict[str, Any] = {}
    linear = {
        "attention/query": ([layer.attention.self.query for layer in layers], (width, *heads)),
        "attention/key": ([layer.attention.self.key for layer in layers], (width, *heads)),
        "attention/value": ([layer.attention.self.value for layer in layers], (width, *heads)),
        "attention/output": ([layer.attention.output.dense for layer in layers], (*heads, width)),
        "feed_forward/up": ([layer.intermediate.dense for layer in layers], (width, -1)),
        "feed_forward/down": ([layer.output.dense for layer in layers], (-1, width)),
    }
    for path, (maps, shape) in linear.items():
        kernels = stacked([each.weight.T for each in maps])
        flat[f"encoder/layers/{path}/kernel"] = kernels.reshape(len(maps), *shape)
        bias = stacked([each.bias for each in maps])
        by_head = path in ("attention/query", "attention/key", "attention/value")
        flat[f"encoder/layers/{path}/bias"] = bias.reshape(-1, *heads) if by_head else bias
    embeddings, head = model.roberta.embeddings, model.lm_head
    norms = {
        "encoder/layers/attention_norm": [layer.attention.output.LayerNorm for layer in layers],
        "encoder/layers/feed_forward_norm": [layer.output.LayerNorm for layer in layers],
        "encoder/embeddings/norm": embeddings.LayerNorm,
        "head/norm": head.layer_norm,
    }
    for path, norm in norms.items():
        several = norm if isinstance(norm, list) else [norm]
        for ours, theirs in (("scale", "weight"), ("bias", "bias")):
            values = stacked([getattr(each, theirs) for each in several])
            flat[f"{path}/{ours}"] = values if isinstance(norm, list) else values[0]
    return nest_params(
        flat
        | {
            "encoder/embeddings/token": embeddings.word_embeddings.weight.detach().numpy(),
            # Its positions start at 2, after the position of padding.
            "encoder/embeddings/position": embeddings.position_embeddings.weight.detach().numpy()[2:],
            "encoder/embeddings/segment": embeddings.token_type_embeddings.weight.detach().numpy(),
            "head/dense/kernel": head.dense.weight.detach().numpy().T,
            "head/dense/bias": head.dense.bias.detach().numpy(),
            "head/bias": head.bias.detach().numpy(),
        }
    )


def assert_same_outputs(theirs: Any, body: Any, params: dict[str, Any], config: BertConfig) -> None:
    ids = np.random.RandomState(0).randint(2, config.vocabulary_size, (ROWS, LENGTH))
    real = np.arange(LENGTH) < LENGTHS[:, None]
    padding = theirs.config.pad_token_id
    ids = np.where(real, ids, padding)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real).long()}
    with torch.no_grad():
        logits, hidden = theirs(**inputs).logits.numpy(), body(**inputs).last_hidden_state.numpy()
    graph, fresh = split_model(BertMaskedLM(config, key=jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    model = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
    arrays = (jnp.asarray(ids, jnp.int32), jnp.asarray(real))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    found = np.asarray(model.encoder(*arrays)), np.asarray(model(*arrays, positions))
    for ours, others in zip(found, (hidden, logits), strict=True):
        # For float32 outputs between 1 and 10.
        scale = max(1.0, np.abs(others[real]).max())
        assert scale > 1.5
        np.testing.assert_allclose(ours[real], others[real], atol=1e-5 * scale, rtol=0)


def test_outputs_equal_modernberts() -> None:
    """Pre-LN, GeGLU, rotary with two bases, windows, no biases, the norm of the embeddings, all at once."""
    theirs = modernbert(MODERN)
    assert_same_outputs(theirs, theirs.model, parameters_of_modernbert(theirs, MODERN), MODERN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"local_attention_window": 10},
        {"global_attention_every": 2},
        {"rotary_base": 10_000.0},
        {"local_rotary_base": None},
        {"activation": "swiglu"},
        {"layer_norm_epsilon": 1e-3},
        {"head_activation": "gelu_tanh"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_every_setting_of_modernbert_matters(wrong: dict[str, Any]) -> None:
    theirs = modernbert(MODERN)
    params = parameters_of_modernbert(theirs, MODERN)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_outputs(theirs, theirs.model, params, replace(MODERN, **wrong))


def test_outputs_equal_robertas() -> None:
    theirs = roberta(ROBERTA)
    assert_same_outputs(theirs, theirs.roberta, parameters_of_roberta(theirs, ROBERTA), ROBERTA)


def test_swiglu_and_rms_norm_equal_llamas() -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    config = replace(MODERN, activation="swiglu", norm="rms_norm")
    theirs = random_weights(
        torch.nn.ModuleDict(
            {
                "norm": LlamaRMSNorm(48, eps=1e-5),
                "mlp": LlamaMLP(
                    transformers.LlamaConfig(hidden_size=48, intermediate_size=72, num_attention_heads=4)
                ),
            }
        )
    )
    x = np.random.RandomState(0).standard_normal((2, 7, 48)).astype(np.float32) * 3
    with torch.no_grad():
        expected = theirs["mlp"](theirs["norm"](torch.from_numpy(x))).numpy()
    norm = RMSNorm(48, epsilon=1e-5, key=jax.random.key(0))
    norm.scale[...] = jnp.asarray(theirs["norm"].weight.detach().numpy())
    feed_forward = FeedForward(config, key=jax.random.key(0))
    for name in ("gate", "up", "down"):
        weight = getattr(theirs["mlp"], f"{name}_proj").weight.detach().numpy()
        getattr(feed_forward, name).kernel[...] = jnp.asarray(weight.T)
    found = feed_forward(norm(jnp.asarray(x)))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def count(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_parameter_counts_equal_transformers() -> None:
    with torch.device("meta"):
        their_roberta = transformers.RobertaForMaskedLM(
            transformers.RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
        )
        their_modernbert = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig())
    shapes = (load_config(CONFIGS / f"{name}_base.py").model for name in ("roberta", "modernbert"))
    ours = (count_parameters(shape, pooler=False, mlm_head=True) for shape in shapes)
    # RoBERTa has two rows of positions that no token has. ModernBERT lacks the attention norm of its first layer.
    assert next(ours) == count(their_roberta) - 2 * 768
    assert next(ours) == count(their_modernbert) + 768
