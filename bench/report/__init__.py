"""What came of runs, for people and for other programs: a page, a trace, a table in a terminal."""
