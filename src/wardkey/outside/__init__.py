"""What lives outside this process: the broker."""
