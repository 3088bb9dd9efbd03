"""`make demo`: the life of a key, on a real deployment."""
