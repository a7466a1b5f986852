"""One guest over its sizes: what its load misses at each, and what its learnt curve predicted."""
