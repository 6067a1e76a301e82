"""Below the block stores: host memory and disk, and what moves bytes between them and the store."""
