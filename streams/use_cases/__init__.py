"""The use cases: their schemas, UDFs and queries over the platform."""
