"""The configuration of each role: the cluster's, with ``cluster.roles`` on top.

So prefill and decode may have other blocks, shards, dtypes and budgets. Knows keys, no instance.
"""

from triptych.core import topology
from triptych.core.config import Config, override
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role

_OWN = ("cache", "engine", "model", "transfer")
"""Sections that instances may have to themselves."""


def configs_of(config: Config) -> dict[Role, Config]:
    """The configuration of every role of the topology. Raises ConfigError that names the key."""
    roles = {topology.name(role): role for role, _ in topology.parse(config.cluster.topology)}
    for name, settings in config.cluster.roles.items():
        if name not in roles:
            raise ConfigError(f"cluster.roles: {name!r} is not one of {', '.join(roles)}")
        for setting in settings:
            key = setting.partition("=")[0].strip()
            if key.partition(".")[0] not in _OWN or key == "model.path":
                raise ConfigError(f"cluster.roles.{name}: {key} is the same for all instances")
    return {role: _config_of(config, name) for name, role in roles.items()}


def _config_of(config: Config, name: str) -> Config:
    try:
        return override(config, config.cluster.roles.get(name, ()))
    except ConfigError as error:
        raise ConfigError(f"cluster.roles.{name}: {error.detail}") from error
