"""Words, contracts and tables. NumPy and the standard library only."""
