"""Text files → shards, in parallel and in parts, and resumable after an interruption.

In: paths of text and a tokenizer. Out: a folder of shards with its manifest.
Read `prepare.py` first.
"""
