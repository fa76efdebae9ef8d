"""A data set's folder as shards with everything inside: Parquet, or WebDataset's tars."""
