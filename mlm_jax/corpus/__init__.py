"""Documents of text files, folders, globs and URLs, in whatever format and compression. Never imports jax.

In: paths. Out: documents, one after the other, and what was skipped. Read `documents.py` first.
"""
