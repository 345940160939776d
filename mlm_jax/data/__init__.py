"""From text to batches: corpus → tokenizer → shards → batches. Nothing here imports jax."""
