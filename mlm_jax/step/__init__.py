"""Training and evaluation steps, compiled for a mesh.

In: a `TrainConfig`, a mesh, a batch. Out: a new state and its metrics.
Read `train_step.py` first (the masked-LM step), then `update.py` (gradients and optimizer, for any loss) and
`program.py` (the compiled steps, with the shardings of all arrays).
"""
