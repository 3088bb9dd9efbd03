"""Actions on API keys, their secrets, limits, scopes and usage."""
