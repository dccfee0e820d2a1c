"""Reads the rows of one file: JSON, CSV, Parquet, Arrow or text, compressed or not."""
