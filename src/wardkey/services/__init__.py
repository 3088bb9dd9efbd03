"""Services that join adapters, actions and verification, and know no HTTP."""
