"""Which key tiles a query tile of a long visual prompt attends to: several ways, one interface."""
