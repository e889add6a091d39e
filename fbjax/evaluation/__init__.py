"""Metrics of generated videos, each reported with the protocol that it was measured under."""
