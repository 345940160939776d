"""Text files to token ids. Never imports jax.

In: paths, globs and URLs of text files. Out: documents (`corpus.py`) and their token ids (`tokenizer.py`).
Read `corpus.py` first, then `tokenizer.py`.
"""
