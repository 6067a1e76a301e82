"""`triptych bench`: the measuring commands, one file each."""
