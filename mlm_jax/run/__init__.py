"""Training loop, and everything a run reports.

In: a `TrainConfig`. Out: a run folder.
Read `trainer.py` first.
"""
