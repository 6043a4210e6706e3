"""The built-in Avro schemas of events (`*.avsc`), read through `streams.serde.load_builtin`."""
