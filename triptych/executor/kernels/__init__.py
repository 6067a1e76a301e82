"""Operations on tensors, each twice: a plain twin, which is its specification, and Triton."""
