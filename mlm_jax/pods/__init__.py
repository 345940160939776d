"""A training step compiled for chips that are not present.

In: a `TrainConfig` and the name of a topology. Out: memory, FLOPs and collectives of one chip.
Read `compile_check.py` first.
"""
