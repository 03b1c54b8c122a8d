"""Images that lie in Parquet files, as Hugging Face's data sets have them."""
