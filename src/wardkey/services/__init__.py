"""Services that join adapters, actions and verification, without HTTP."""
