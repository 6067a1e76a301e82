"""Ways for the bytes of a transfer, one file each, behind one interface."""
