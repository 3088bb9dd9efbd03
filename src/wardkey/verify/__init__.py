"""The read path of a verdict: known secrets, their freshness, limits and usage."""
