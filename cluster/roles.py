"""The configuration of each role: the cluster's, with ``cluster.roles`` on top; and the places that
a topology has.

So prefill and decode may have other blocks, shards, dtypes and budgets. Knows keys, no instance.
"""

from itertools import combinations

from triptych.core import topology
from triptych.core.config import Config, override
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role, Stage

_OWN = ("cache", "engine", "model", "transfer")
"""Sections that instances may have to themselves."""
_SHARED = ("model.path", "transfer.credits", "transfer.digest")
"""Keys of those sections on which the instances must agree."""


_LANGUAGE = {Stage.PREFILL, Stage.DECODE}
ROLES: dict[str, Role] = {
    topology.name(role): role
    for size in range(1, len(Stage) + 1)
    for role in map(frozenset, combinations(Stage, size))
}
"""All that an instance can be, at its start or later."""


def configs_of(config: Config) -> dict[Role, Config]:
    """The configuration of every role, those included that no instance has now. Raises ConfigError
    that names the key."""
    for name, settings in config.cluster.roles.items():
        if name not in ROLES:
            raise ConfigError(f"cluster.roles: {name!r} is not one of {', '.join(ROLES)}")
        for setting in settings:
            key = setting.partition("=")[0].strip()
            if key.partition(".")[0] not in _OWN or key in _SHARED:
                raise ConfigError(f"cluster.roles.{name}: {key} is the same for all instances")
    made = {role: _config_of(config, name) for name, role in ROLES.items()}
    _check_codes(config, made)
    return made


def _check_codes(config: Config, made: dict[Role, Config]) -> None:
    """KV that is codes becomes no other layout (ADR 21): who takes it must have the giver's."""
    own = [made[role] for role, _ in topology.parse(config.cluster.topology) if role & _LANGUAGE]
    if all(each.cache.kv_dtype == "auto" for each in own):
        return
    for setting in ("cache.kv_dtype", "cache.block_size", "model.tensor_parallel"):
        section, _, key = setting.partition(".")
        if len({getattr(getattr(each, section), key) for each in own}) > 1:
            raise ConfigError(
                f"cluster.roles: {setting} has to be the same wherever KV is computed or taken, as"
                " cache.kv_dtype makes codes of it"
            )


def role_of(name: str) -> Role:
    """The role that a topology writes as ``name``. Raises ConfigError."""
    try:
        return ROLES[name]
    except KeyError:
        raise ConfigError(f"role: {name!r} is not one of {', '.join(ROLES)}") from None


def places_of(text: str) -> tuple[tuple[str, Role], ...]:
    """The places of a topology by name, with the roles that they begin with. Raises ConfigError."""
    return tuple(
        (f"{_word(role)}-{index}", role)
        for role, count in topology.parse(text)
        for index in range(count)
    )


def _word(role: Role) -> str:
    """``decode``, ``epd``."""
    return next(iter(role)).value if len(role) == 1 else topology.name(role).lower()


def _config_of(config: Config, name: str) -> Config:
    try:
        return override(config, config.cluster.roles.get(name, ()))
    except ConfigError as error:
        raise ConfigError(f"cluster.roles.{name}: {error.detail}") from error
