"""Loads, downloads and converts models, and stores checkpoints.

In: a name, a URL or a folder. Out: config, parameters and tokenizer, or a new folder with a certificate.
Read `loading.py` first, then `conversion.py` for conversions or `checkpoint.py` for checkpoints of runs.
"""
