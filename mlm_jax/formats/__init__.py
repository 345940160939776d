"""Reads and writes models in the formats of other libraries and in our own: file names, configs and tensor names.

In: a folder. Out: a `StoredModel`, and back.
Read `model_folder.py` and `name_table.py` first, then one format, such as `hugging_face.py`.
"""
