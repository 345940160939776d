"""Optimizers and learning-rate schedules.

In: an `OptimizerConfig`. Out: an optax transformation of the model's stacked parameters.
Read `optimizer.py` first.
"""
