"""What every action builds on: the runner, the audit log, idempotency, tenancy, costly hashing."""
