"""Token ids to the rows of a training step. Never imports jax.

In: documents as token ids. Out: shards on disk (`prepare.py`) and the `Batch` of any step number (`batches.py`).
Read `batches.py` first, then `shards.py`.
"""
