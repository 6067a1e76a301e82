"""What this machine takes: steps of the configured model, and everything around them, measured."""
