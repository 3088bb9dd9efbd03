"""Shared parts of all HTTP routes: connections, authentication, problems, limits, pagination."""
