"""Families of encoders, one file each: their settings, tensors and heads in transformers' folders.

In: a config.json, or a `BertConfig`. Out: the other one, and the table that names each parameter's tensor.
Read `family.py` first, then one family, such as `roberta.py`. Nothing outside asks which family a model is of:
architecture is told by the fields of `BertConfig`.
"""
