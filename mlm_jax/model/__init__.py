"""The encoder, its masked-LM head and its loss.

In: token ids, masks, mask positions. Out: hidden states, predictions, sums of the loss.
Read `bert.py` first.
"""
