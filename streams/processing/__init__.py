"""Folding events into tables: the Faust worker, its partitions, the commit. Importing this imports no Faust."""
