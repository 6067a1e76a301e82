"""The twins: plain PyTorch, slow where that is clearer. What a kernel must give stands here."""
