"""The routes through which other programs reach MQTT: publish, and the hooks of other brokers."""
