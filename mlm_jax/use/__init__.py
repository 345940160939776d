"""Uses of a trained model: filling masks, features, likelihoods, fine-tuning, classification.

In: a model by name or folder, and texts. Out: predictions, arrays, reports, fine-tuned models.
Read `masked_lm.py` first.
"""
