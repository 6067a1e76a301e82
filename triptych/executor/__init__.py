"""The one room of tensors: plans in, tokens and written blocks out."""
