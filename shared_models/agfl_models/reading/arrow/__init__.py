"""Parquet, Arrow and what `datasets` saved: columns that pyarrow reads, in parts, as rows."""
