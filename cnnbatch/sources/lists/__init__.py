"""Images that a text, CSV or Parquet file lists by address."""
