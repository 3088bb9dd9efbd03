"""Adapters to other programs: the MQTT broker and identity providers."""
