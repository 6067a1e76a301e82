"""Everything that speaks gRPC between processes: conversion, status, client and server."""
