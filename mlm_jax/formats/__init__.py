"""Reads and writes models in our own format and those of other libraries: file names, configs and tensor names.

In: a folder. Out: a `StoredModel`, and back.
Read `model_folder.py` and `name_table.py` first, then one format, such as `hugging_face.py`.
"""
