"""Shared test infrastructure: servers, databases, brokers, proxies, identity providers."""
