"""One step of training or evaluation, compiled for a mesh.

In: a `TrainConfig`, a mesh, a batch. Out: a new state and its metrics.
Read `train_step.py` first, then `program.py`.
"""
