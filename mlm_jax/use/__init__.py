"""What a user does with a trained model.

In: a model by name or folder, and strings. Out: candidates for masks, features, classifiers, probes.
Read `masked_lm.py` first.
"""
