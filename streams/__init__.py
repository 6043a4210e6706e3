"""Event-log platform for edge computing."""
