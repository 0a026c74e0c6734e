"""Low-rank channels between attention heads: found in the weights, checked by intervention (arXiv 2406.09519)."""
