"""Actions on organizations, their members, and people's credentials and browser sessions."""
