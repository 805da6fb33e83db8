"""Kafka to store: poll, decode, checkpoint."""
