"""Shared by all actions: the runner, the audit log, idempotency, tenancy and password hashing."""
