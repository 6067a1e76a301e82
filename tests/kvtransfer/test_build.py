"""Which ways an instance has, and that one which was asked for by name must work."""

import msgspec
import pytest

from cluster.host import InstanceSpec
from cluster.instance_build import build_instance
from kvtransfer.build import build_ways, check_way
from kvtransfer.transports import nixl_agent
from triptych.core.config import Config, ModelConfig, TransferConfig
from triptych.core.errors import ConfigError
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage

ME = InstanceId("me@0")


def config(**settings):
    return msgspec.structs.replace(TransferConfig(), **settings)


def ways(**settings):
    made = build_ways(ME, config(**settings))
    for way in made:
        way.close()
    return [way.name for way in made]


def test_a_way_that_is_missing_here_is_not_offered_and_not_to_be_asked_for(monkeypatch):
    monkeypatch.setattr(nixl_agent, "PACKAGES", ("nixl_of_nobody",))
    assert ways(nccl_backend="nobody") == ["inproc", "shm", "tcp"]
    check_way(config(nccl_backend="nobody"))
    with pytest.raises(ConfigError, match="transfer.transport=nixl: .* .the extra nixl"):
        check_way(config(transport="nixl"))
    with pytest.raises(ConfigError, match="transfer.transport=nccl: torch has no backend nobody"):
        check_way(config(transport="nccl", nccl_backend="nobody"))


def test_a_way_that_works_here_may_be_asked_for():
    assert "nccl" in ways(nccl_backend="gloo")
    check_way(config(transport="nccl", nccl_backend="gloo"))
    if nixl_agent.is_installed():
        assert "nixl" in ways()
        check_way(config(transport="nixl"))


async def test_an_instance_refuses_before_it_loads_anything(monkeypatch):
    monkeypatch.setattr(nixl_agent, "PACKAGES", ("nixl_of_nobody",))
    whole = Config(transfer=config(transport="nixl"), model=ModelConfig(path="/nowhere"))
    with pytest.raises(ConfigError, match="the extra nixl"):
        await build_instance(InstanceSpec(ME, (Stage.DECODE,), whole, b"secret"))
