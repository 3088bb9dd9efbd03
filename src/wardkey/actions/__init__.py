"""Everything that changes or reads tenant data; an action takes `(tx, by, …)`."""
