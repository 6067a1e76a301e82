"""``python -m cli.gpu``: what the executor reaches of a GPU, row by row beside its floor."""
