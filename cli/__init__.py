"""What an operator types: serve, ask, doctor, census."""
