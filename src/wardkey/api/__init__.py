"""The REST API under /v2, a module per noun."""
