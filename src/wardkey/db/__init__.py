"""Storage: the tables, the engine and transactions, the derived keys and the migrations."""
