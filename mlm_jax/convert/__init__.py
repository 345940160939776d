"""Models of other libraries, in and out: one file a format, each around one table of names read in both directions."""
