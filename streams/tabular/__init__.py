"""Tables in any form (Arrow, CSV, NDJSON, Parquet, data frames) as puts in columns. Sole importer of pyarrow."""
