"""Everything one can do, a module per noun; each action takes `(tx, by, …)`."""
