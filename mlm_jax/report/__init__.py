"""The report of a sweep: its folder is read, its trials are compared, and tables, pictures and a page are written."""
