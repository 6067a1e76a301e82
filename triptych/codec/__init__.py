"""Numbers of blocks as other bytes: dtypes without rounding surprises, rows of 8-bit codes with a
scale. What travels in a quantised wire format and what rests in a quantised tier."""
