"""What computing and moving take on hardware that is not here: from measured kernel tables,
published coefficients and profiles. Ask ``registry.costs``."""
