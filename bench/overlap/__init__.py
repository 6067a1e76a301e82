"""What overlap of stages and transfers hides: measured here, and computed for a large model."""
