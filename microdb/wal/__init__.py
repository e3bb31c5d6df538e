"""The write-ahead log: its bytes, its files, and the page that says how far it goes."""
