"""Storage: tables, connections and transactions, derived keys, backups and migrations."""
