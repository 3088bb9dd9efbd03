"""`make demo`: a key lives its whole life on the real thing, before your eyes."""
