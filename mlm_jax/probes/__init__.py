"""Probes a masked language model for bias, with paired templates and published pairs, and grammar, with minimal pairs.

In: a `MaskedLM` and templates or a published data set. Out: a `ProbeReport` with bootstrap intervals.
Read `probes.py` first.
"""
