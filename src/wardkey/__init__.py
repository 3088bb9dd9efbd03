"""Wardkey issues, verifies and revokes API keys for the organizations of one deployment."""

__version__ = "0.1.0"
