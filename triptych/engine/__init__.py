"""Engines decide what is computed next: ``plan -> execute -> apply``. No tensors, no network."""
