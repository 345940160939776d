"""The encoder, its masked-LM head and its loss.

In: token ids, masks, mask positions. Out: hidden states, predictions, loss sums.
Read `bert.py` first; `layers.py` has the parts of a layer and declares weights.
"""
