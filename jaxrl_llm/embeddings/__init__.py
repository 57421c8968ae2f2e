"""Short texts as vectors: how near two of them are in meaning, or in letters."""
