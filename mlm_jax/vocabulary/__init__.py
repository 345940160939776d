"""Tokenizers as other libraries keep them: classes, special tokens and vocabularies of each kind. Never imports jax.

In: a folder or file of transformers, KerasHub, Google or SentencePiece. Out: a tokenizer of the `tokenizers` library,
its special tokens by role, and the frame of its texts. Read `files.py` first, then `transformers_folder.py`.
"""
