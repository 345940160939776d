"""Probes of a masked language model: bias by paired templates and published pairs, and grammar by minimal pairs.

In: a `MaskedLM` and templates or a published data set. Out: a `ProbeReport` with bootstrap intervals.
Read `probes.py` first.
"""
