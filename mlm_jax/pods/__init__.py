"""Compiles a training step for chips that are not attached.

In: a `TrainConfig` and the name of a topology. Out: memory, FLOPs and collectives per chip.
Read `compile_check.py` first.
"""
