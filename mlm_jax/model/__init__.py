"""The network: embeddings, layers, encoder, MLM head, attention and the loss over a large vocabulary."""
