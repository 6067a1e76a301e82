"""How many GPUs an actor asks Ray for."""

import pytest

from cluster.ray_actors import gpus_per_rank
from triptych.core.config import load
from triptych.core.errors import ConfigError

APART = 'cluster.roles={P = ["model.tensor_parallel=4", "model.parallel=devices"]}'


def per_rank(gpus: float, *settings: str) -> float:
    return gpus_per_rank(gpus, load(None, ["cluster.topology=E1,P2,D1", *settings], environment={}))


def test_instances_share_what_there_is():
    assert per_rank(8) == per_rank(4) == 1.0
    assert per_rank(2) == 0.5
    assert per_rank(3) == 0.75
    assert per_rank(0) == per_rank(4, "model.device=cpu") == 0.0


def test_a_rank_with_memory_of_its_own_has_a_gpu_of_its_own():
    assert per_rank(10, APART) == 1.0
    with pytest.raises(ConfigError, match=r"model\.parallel: 10 instances and ranks .* has 9"):
        per_rank(9, APART)
    everywhere = ("model.tensor_parallel=2", "model.parallel=devices")
    assert per_rank(7, *everywhere) == 1.0, "who only encodes has no ranks"
    with pytest.raises(ConfigError, match="7 instances and ranks"):
        per_rank(6, *everywhere)
    inside = APART.replace("devices", "inside")
    assert per_rank(4, inside) == 1.0, "ranks inside are one process's"
