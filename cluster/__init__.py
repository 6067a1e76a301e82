"""Instances and what hosts them: this process, plain processes or Ray actors."""
