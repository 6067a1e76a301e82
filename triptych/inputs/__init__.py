"""From a client's words and pictures to what the model sees, and back to text. No tensors."""
