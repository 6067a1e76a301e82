"""Open-loop measurements over HTTP. Sees of the server what a client sees, and no more."""
