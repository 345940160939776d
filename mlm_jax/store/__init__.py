"""Models and checkpoints by name or folder.

In: a name, a URL or a folder. Out: parameters, config and tokenizer; or a new folder with a certificate.
Read `loading.py` first; `conversion.py` for conversion and `checkpoint.py` for runs.
"""
