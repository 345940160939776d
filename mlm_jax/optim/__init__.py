"""Optimizers and learning-rate schedules.

In: an `OptimizerConfig` and the declared weights of a model. Out: an optax transformation for its stacked parameters.
Read `optimizer.py` first.
"""
