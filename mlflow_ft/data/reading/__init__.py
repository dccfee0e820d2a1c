"""Rows out of one file, whatever its kind: JSON, CSV, Parquet, Arrow, text, compressed or not."""
