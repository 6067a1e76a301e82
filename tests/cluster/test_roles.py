"""Settings of one role: what they change, and how they refuse."""

import pytest

from cluster.roles import configs_of, places_of, role_of
from triptych.core import topology
from triptych.core.config import dump, load, undump
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Stage


def configs(*settings, roles):
    text = ", ".join(f"{name} = {list(values)}" for name, values in roles.items())
    config = load(
        None,
        ["cluster.topology=E1,P2,D1", f"cluster.roles={{ {text} }}", *settings],
        environment={},
    )
    return {topology.name(role): own for role, own in configs_of(config).items()}, config


def test_a_role_has_its_own_settings_and_the_others_none_of_them():
    found, config = configs(
        "cache.kv_blocks=77", roles={"P": ["cache.block_size=8", "engine.chunk_tokens=64"]}
    )
    assert found["P"].cache.block_size == 8
    assert found["P"].engine.chunk_tokens == 64
    assert found["P"].cache.kv_blocks == 77
    assert found["E"] == found["D"] == config
    assert undump(dump(found["P"])) == found["P"]


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        ({"DP": ["cache.block_size=8"]}, r"cluster\.roles: 'DP' is not one of E, P, D, EP, ED, PD"),
        ({"D": ["cache.blok_size=8"]}, r"cluster\.roles\.D: .*blok_size"),
        ({"D": ["cache.block_size=0"]}, r"cluster\.roles\.D: .*cache\.block_size"),
        ({"D": ["cache.block_size"]}, r"cluster\.roles\.D: .*section\.key=value"),
        ({"D": ["router.http=x:1"]}, r"cluster\.roles\.D: router\.http is the same for all"),
        ({"D": ["model.path=other"]}, r"cluster\.roles\.D: model\.path is the same for all"),
        ({"D": ["transfer.credits=8"]}, r"cluster\.roles\.D: transfer\.credits is the same for"),
        ({"P": ["transfer.digest=false"]}, r"cluster\.roles\.P: transfer\.digest is the same for"),
        ({"D": ["cluster.roles={}"]}, r"cluster\.roles\.D: cluster\.roles is the same for all"),
        ({"P": ["engine.token_budget=1"]}, r"cluster\.roles\.P: engine\.token_budget"),
    ],
)
def test_what_is_wrong_is_named_with_its_role(roles, named):
    with pytest.raises(ConfigError, match=named):
        configs(roles=roles)


def test_a_role_that_nobody_has_yet_may_have_settings():
    found, _ = configs(roles={"PD": ["cache.kv_blocks=99"]})
    assert found["PD"].cache.kv_blocks == 99
    assert role_of("PD") == {Stage.PREFILL, Stage.DECODE}
    with pytest.raises(ConfigError, match="role: 'X' is not one of E, P, D, EP, ED, PD, EPD"):
        role_of("X")


def test_places_are_named_after_the_roles_that_they_begin_with():
    assert [name for name, _ in places_of("E2,PD1")] == ["encode-0", "encode-1", "pd-0"]
