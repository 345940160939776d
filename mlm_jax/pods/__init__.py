"""A training step compiled for chips that are not present.

In: a `TrainConfig` and the name of a topology. Out: the memory, FLOPs and collectives per chip.
Read `compile_check.py` first.
"""
