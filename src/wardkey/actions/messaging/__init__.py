"""Actions on MQTT clients, ACL rules, sessions and publications."""
