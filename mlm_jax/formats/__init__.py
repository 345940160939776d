"""Models as other libraries write them, and as mlm_jax does: file names, configs, tensor names, in both directions.

In: a folder. Out: a `StoredModel`, and back.
Read `model_folder.py` and `name_table.py` first.
"""
