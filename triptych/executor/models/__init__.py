"""Model definitions, their configuration and their weights."""
