"""The overview and usage."""
