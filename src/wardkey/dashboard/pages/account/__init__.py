"""Signing in, invitations, passkeys and the account of the signed-in user."""
