"""Published results as targets: a scenario each, what is measured of it, and the expected band."""
