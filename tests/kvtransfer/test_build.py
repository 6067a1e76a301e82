"""Which ways an instance has, and that one which was asked for by name must work."""

import msgspec
import pytest

from kvtransfer.build import build_ways
from kvtransfer.transports import nixl_agent
from triptych.core.config import TransferConfig
from triptych.core.errors import ConfigError
from triptych.core.ids import InstanceId

ME = InstanceId("me@0")


def ways(**settings):
    made = build_ways(ME, msgspec.structs.replace(TransferConfig(), **settings))
    for way in made:
        way.close()
    return [way.name for way in made]


def test_a_way_that_is_missing_here_is_not_offered_and_not_to_be_asked_for(monkeypatch):
    monkeypatch.setattr(nixl_agent, "PACKAGES", ("nixl_of_nobody",))
    assert ways(nccl_backend="nobody") == ["inproc", "shm", "tcp"]
    with pytest.raises(ConfigError, match="transfer.transport=nixl: .* .the extra nixl"):
        ways(transport="nixl")
    with pytest.raises(ConfigError, match="transfer.transport=nccl: torch has no backend nobody"):
        ways(transport="nccl", nccl_backend="nobody")


def test_a_way_that_works_here_may_be_asked_for():
    assert "nccl" in ways(transport="nccl", nccl_backend="gloo")
    if nixl_agent.is_installed():
        assert "nixl" in ways(transport="nixl")
