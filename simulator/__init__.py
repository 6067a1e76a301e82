"""The server under a virtual clock: its own router, engines, caches and policies; modelled are
only time, computation and links."""
