"""The command line: one file per command; nothing here imports torch before it is needed."""
