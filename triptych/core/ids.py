"""Names of things. Distinct types for each kind of identifier, so that they cannot be swapped.

Knows nothing about what the identifiers point at.
"""

from typing import NewType

RequestId = NewType("RequestId", str)
"""A client's request, made at the door: ``req-<hex>``."""

JobId = NewType("JobId", str)
"""One piece of work sent to one stage: ``<request>/<choice>/<epoch>/<stage>``."""

SessionId = NewType("SessionId", str)
"""One router's open event stream at one instance."""

InstanceId = NewType("InstanceId", str)
"""One incarnation of one instance: ``decode-0@3``. A restarted instance has another id."""

TenantId = NewType("TenantId", str)
"""The authenticated tenant; ``public`` when no keys are configured."""

BlockId = NewType("BlockId", int)
"""Index of a block in one block pool."""

ContentHash = NewType("ContentHash", bytes)
"""SHA-256 over length-prefixed fields, 32 bytes; see ``core.hashing``."""

Handle = NewType("Handle", str)
"""Unguessable, single-use name of one promised transfer, made by the router."""


def attempt_of(job: JobId) -> str:
    """``<request>/<choice>/<epoch>``: what the jobs of one attempt of a request share."""
    return job.rpartition("/")[0]


def succeeds(instance: InstanceId, other: InstanceId) -> bool:
    """Whether ``instance`` is a later incarnation of the place that ``other`` had."""
    (place, _, number), (former, _, earlier) = instance.rpartition("@"), other.rpartition("@")
    are_numbers = number.isdecimal() and earlier.isdecimal()
    return place == former and are_numbers and int(number) > int(earlier)
