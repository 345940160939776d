"""Files and folders that are complete or absent, folders with one owner at a time, checksums, and checked JSON.

In: paths and bytes. Out: complete files and their content, or an error that says what is in the way. Imports only
`mlm_jax.errors`. Read `atomic.py` first.
"""
