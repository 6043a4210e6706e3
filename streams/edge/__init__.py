"""The gateway's replica of all tables: merged reads, ordered reads, tokens, digests, purges."""
