"""Actions on grants and on the auth providers whose tokens are exchanged for them."""
