"""Moving blocks between block stores: promised by the router, offered by the producer's outbox,
pulled by the consumer's receiver. Sees layouts and bytes, never models."""
