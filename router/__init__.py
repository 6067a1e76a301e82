"""The doors, the ledger and the path of a request."""
