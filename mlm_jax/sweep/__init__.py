"""Runs the trials of an ablation, each with several seeds.

In: a Python file with `trials()`. Out: a folder with one run per trial and seed.
Read `plan.py` first, then `runner.py`.
"""
