"""Shards of token ids on disk, and the rows of each training step. Imports jax only to read ahead.

In: documents as token ids. Out: shards on disk (`prepare.py`) and the `Batch` of any step (`batches.py`).
Read `batches.py` first, then `shards.py`.
"""
