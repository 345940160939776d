"""New vocabularies for existing models: more words, or another tokenizer.

In: a stored model with words, text or a tokenizer. Out: a stored model with the new tokenizer and a row for each entry.
Read `new_words.py` first, then `rows.py`. What depends on the kind of tokenizer is in `kinds.py` only.
"""
