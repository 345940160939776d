"""Report of a sweep: tables, curves and paired differences. Never imports jax.

In: the folder of a sweep. Out: report.md, report.csv, report.html and pictures.
Read `report.py` first.
"""
