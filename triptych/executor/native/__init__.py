"""A step's operations for one core, in C: compiled where they run, walked without Python."""
