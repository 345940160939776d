"""Shards of token ids: files on this machine or behind a URL, written once, and read at any offset.

In: documents as token ids. Out: a `TokenStore`, whose shards are read in windows.
Read `token_store.py` first, then `manifest.py`.
"""
