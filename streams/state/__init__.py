"""Table partitions on disk: the only room that knows RocksDB."""
