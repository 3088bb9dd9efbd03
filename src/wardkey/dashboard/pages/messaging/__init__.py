"""MQTT clients, ACL rules, auth providers, grants and live topics."""
