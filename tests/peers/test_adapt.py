"""Models continued with other positions, beside transformers."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlm_jax.__main__ import run_command
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.store import conversion
from mlm_jax.store.loading import load_model
from mlm_jax.store.reference_outputs import Reference
from tests.run_small import documents, tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
CASES = {
    # Positions count from the padding id + 1.
    "Roberta": ({"type_vocab_size": 1}, {"max-sequence-length": 100}, {"max_position_embeddings": 101}),
    "ModernBert": (
        {"local_attention": 8, "global_attn_every_n_layers": 2},
        {"max-sequence-length": 100, "rotary-base": 500_000.0, "local-rotary-base": 20_000.0},
        {"max_position_embeddings": 100, "global_rope_theta": 500_000.0, "local_rope_theta": 20_000.0},
    ),
}


@pytest.mark.parametrize("family", CASES)
def test_a_model_with_other_positions_is_that_of_transformers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "compared below"))
    settings, changes, expected = CASES[family]
    torch.manual_seed(0)
    source = getattr(transformers, f"{family}ForMaskedLM")(
        getattr(transformers, f"{family}Config")(**SIZES | settings)
    )
    with torch.no_grad():
        for weight in source.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    source.save_pretrained(tmp_path / "source")
    tokenizer().save(tmp_path / "source")
    (tmp_path / "text.txt").write_text("\n".join(documents()[:40]))
    flags = [part for name, value in changes.items() for part in (f"--model.{name}", str(value))]
    # So small a rate that no weight changes.
    flags += ["--num-steps", "1", "--batch-size", "8", "--optimizer.learning-rate", "1e-30"]
    texts = ["--texts", str(tmp_path / "text.txt"), "--output-dir", str(tmp_path / "run")]
    run_command(["train", "--from", str(tmp_path / "source"), *texts, *flags])
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["sequence_length"] == 100
    run_command(["convert", str(tmp_path / "run"), str(tmp_path / "exported"), "--to", "hugging_face"])
    stated = json.loads((tmp_path / "exported/config.json").read_text())
    assert {name: stated[name] for name in expected} == expected
    exported, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    stored = load_model(tmp_path / "exported")
    ids = np.random.default_rng(0).integers(5, 300, (2, 100), dtype=np.int32)
    everywhere = jnp.broadcast_to(jnp.arange(100), ids.shape)
    graph, _ = split_model(abstract_masked_lm(stored.config))
    model = nnx.merge(graph, jax.tree.map(jnp.asarray, stored.params))
    ours = model(jnp.asarray(ids), jnp.ones(ids.shape, bool), everywhere)
    with torch.no_grad():
        theirs = exported.eval()(torch.from_numpy(ids).long()).logits.numpy()
        before, after = (
            model.eval()(torch.from_numpy(ids[:, :39]).long()).logits.numpy() for model in (source, exported)
        )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # Learned positions are repeated; other rotary bases make another model.
    assert np.array_equal(before, after) == (family != "ModernBert")
