"""A step's operations on a CPU, in C: compiled where they run, walked without Python."""
