"""Systems against each other at equal GPUs."""
