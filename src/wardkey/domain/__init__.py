"""Pure domain rules and records; nothing here reads a clock, a socket or a file."""
