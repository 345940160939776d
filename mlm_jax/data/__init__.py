"""Token ids to the rows of a training step. Never imports jax.

In: documents as token ids. Out: shards on disk (`prepare.py`) and, for any step number, a `Batch` (`batches.py`).
Read `batches.py` first, then `shards.py`.
"""
