"""The training loop and everything it reports.

In: a `TrainConfig`. Out: a run folder.
Read `trainer.py` first.
"""
