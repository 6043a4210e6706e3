"""UDF sources and the modules built from them; no Python code."""
