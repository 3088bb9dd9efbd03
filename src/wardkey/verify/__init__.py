"""The verification hot path: cached secrets, their freshness, rate limits and usage counts."""
