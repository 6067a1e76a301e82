"""Who may use which block: pools, the prefix cache and the embedding cache. Integers only."""
