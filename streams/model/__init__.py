"""Nouns of the platform: keys, clocks, tokens, rows, merges, errors. Standard library only."""
