"""Uses of a trained model: mask filling, features, likelihoods, fine-tuning and classification.

In: a model by name or folder, and texts. Out: predictions, arrays, reports, fine-tuned models.
Read `masked_lm.py` first.
"""
