"""Properties derived from the logical axes of a declared weight, and invalid declarations."""

import jax
import pytest
from flax import nnx

from mlm_jax.config.presets import PRESETS
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.layers import parameter
from mlm_jax.parallel.weights import Weight, declared_weights


def test_stacking_and_matrices_follow_from_the_axes() -> None:
    weights = declared_weights(abstract_masked_lm(PRESETS["bert_tiny_en_uncased"]))
    assert {path for path, weight in weights.items() if weight.stacked} == {
        path for path in weights if path.startswith("encoder/layers/")
    }
    assert {path for path, weight in weights.items() if not weight.is_matrix} == {
        path for path in weights if path.endswith(("bias", "scale"))
    }
    attention = "encoder/layers/attention"
    query, output = weights[f"{attention}/query/kernel"], weights[f"{attention}/output/kernel"]
    assert (query.shape, query.sides, query.side_shape) == ((2, 128, 2, 64), ((1,), (2, 3)), (2, 128, 128))
    assert (output.shape, output.sides) == ((2, 2, 64, 128), ((1, 2), (3,)))
    assert weights[f"{attention}/query/bias"].side_shape == (2, 128)
    assert weights["encoder/embeddings/token"].sides == ((0,), (1,))


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((4, 4), ("embed",), r"shape \(4, 4\) needs as many logical axes, not \('embed',\)"),
        ((4,), ("depth",), "logical axis 'depth' has no rule"),
        ((2, 4, 4, 4), ("layers", "embed", "intermediate", "pooled"), "must be a vector's or a matrix's"),
        ((4, 2), ("embed", "layers"), "must be a vector's or a matrix's"),
        ((2,), ("layers",), "must be a vector's or a matrix's"),
        ((), (), "must be a vector's or a matrix's"),
    ],
)
def test_a_weight_without_a_rule_is_an_error(
    shape: tuple[int, ...], axes: tuple[str, ...], message: str
) -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.mixer = parameter(jax.random.key(0), shape, axes)

    with pytest.raises(ValueError, match=f"^mixer: .*{message}"):
        declared_weights(nnx.eval_shape(Model))


def test_a_head_dimension_without_heads_is_a_separate_side() -> None:
    assert Weight("w", (4, 8), ("embed", "head_dim")).sides == ((0,), (1,))
