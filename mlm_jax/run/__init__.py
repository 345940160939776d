"""Training loop, metrics, progress reports and watchdog.

In: a `TrainConfig`. Out: a run folder.
Read `trainer.py` first.
"""
