"""Actions: the functions that read or change tenant data, called as `(tx, by, …)`."""
