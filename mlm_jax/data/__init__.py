"""The rows of each training step, in any order. Imports jax only to read ahead.

In: the shards of a run. Out: the `Batch` of any step (`batches.py`).
Read `batches.py` first, then `packing.py` and `order.py`.
"""
