"""Organizations, members, settings and the audit log."""
