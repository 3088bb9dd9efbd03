"""The REST API under /v2, one module per resource."""
