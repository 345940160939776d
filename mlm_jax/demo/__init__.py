"""The demo text, `landmarks.txt`: true sentences about places in the United States, one per line."""
