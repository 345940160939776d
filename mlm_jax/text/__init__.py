"""Text to token ids and back, and where words begin. Never imports jax.

In: text, and a tokenizer of `mlm_jax.vocabulary`, or text to train one on. Out: token ids. Read `tokenizer.py` first.
"""
