"""The door through which HTTP publishes to MQTT."""
