"""The decode stage: one token after the other, streamed to the router."""
