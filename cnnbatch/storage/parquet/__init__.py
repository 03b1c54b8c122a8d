"""Parquet files as strangers write them, read within bounds."""
