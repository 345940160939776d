"""Files and folders that are written as a whole or not at all, and folders with one owner at a time.

In: paths and bytes. Out: complete files, or an error that says what is in the way. Imports only `mlm_jax.errors`.
Read `atomic.py` first.
"""
