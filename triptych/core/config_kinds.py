"""Kinds of numbers that the configuration knows, with their limits."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[int, Meta(ge=0)]
MessageBytes = Annotated[int, Meta(ge=1, le=2**40)]
Seconds = Annotated[float, Meta(gt=0)]
Gap = Annotated[float, Meta(ge=0, le=0.05)]
Share = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(gt=0, le=1e6)]
