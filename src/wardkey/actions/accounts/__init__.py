"""Actions on organizations, members, and users' credentials and browser sessions."""
