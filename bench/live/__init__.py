"""A workload sent to a running server: open loop, closed loop, conversations, any transport."""
