"""Everything that speaks gRPC between processes: conversion, status, client and server."""

import os

FORK_SUPPORT = os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
"""gRPC's fork handlers can hang a child between fork and exec (Ray starts its processes that way).
Nothing here forks without exec, so nobody needs them. Read by gRPC when it is imported."""
