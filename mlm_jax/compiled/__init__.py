"""Reading a compiled step: its collectives, FLOPs and memory traffic, from the text that XLA prints of it."""
