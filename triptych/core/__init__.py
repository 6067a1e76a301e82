"""Words of the system: values and protocols that two floors share. No behaviour, no I/O."""
