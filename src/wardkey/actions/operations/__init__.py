"""The operator's actions: first start, master keys, service keys, hook tokens, restore."""
