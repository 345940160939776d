"""Model FLOPs of a training step, and model FLOPs utilization (MFU)."""

from mlm_jax.config import BertConfig


def train_flops_per_sequence(model: BertConfig, *, length: int, masked: int) -> int:
    """Returns the model FLOPs of a training step per row.

    Only matrix products count; the backward pass costs twice the forward pass. Multiply-adds, of two FLOPs each, per
    layer and position: 4h² for the query, key, value and output projections, or less where queries share keys; 2hf for
    the feed-forward or 3hf for a gated one; 2·keys·h for attention's scores and weighted sum, where the keys of a query
    are the row, or the window and the token itself in a local layer. Per masked position: h² for the MLM head's dense
    layer and hV for the output embedding. Embeddings of another width e take eh per position for the map from them, and
    eh and eV per masked position. Padding counts; rematerialization does not (Chowdhery et al. 2022, PaLM, appendix B),
    and neither do keys outside the window that an implementation computes and discards.
    """
    h, f = model.hidden_dim, model.intermediate_dim
    feed_forward = (3 if model.gated else 2) * h * f
    projections = 2 * h * h + 2 * h * model.key_value_heads * model.head_dim
    encoder = model.num_layers * length * 2 * (projections + feed_forward)
    global_layers = -(-model.num_layers // model.layers_per_period)
    reached = min(length, 1 + (model.local_attention_window or 0))
    encoder += 4 * h * length * (global_layers * length + (model.num_layers - global_layers) * reached)
    e = model.embedding_width
    if model.embedding_dim is not None:
        encoder += 2 * length * e * h
    head = masked * (2 * h * e * model.head_transform + 2 * e * model.vocabulary_size)
    return 3 * (encoder + head)


def mfu(
    *, flops_per_sequence: float, sequences_per_second: float, num_devices: int, peak: float | None
) -> float | None:
    """Returns achieved over peak FLOP/s of all devices (PaLM, appendix B), in [0, 1]; None if the peak is unknown.

    Args:
        flops_per_sequence: see `train_flops_per_sequence`.
        sequences_per_second: total of all devices.
        num_devices: number of devices in the mesh.
        peak: FLOP/s of one device, see `mlm_jax.step.chips.peak_flops`.
    """
    return None if peak is None else flops_per_sequence * sequences_per_second / (num_devices * peak)
