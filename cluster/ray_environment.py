"""What Ray reads from the environment, partly when it is imported: set before that.

Ray's processes, actors included, inherit it. Imports no Ray.
"""

import os
import secrets
import sys

from cluster.host import child_environment
from triptych.core.config import Config


def prepare(config: Config) -> None:
    """Set this process's environment for a private Ray cluster, or only what silences Ray for one
    that runs already (whose authentication is its operator's)."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if config.cluster.ray_address:
        return
    os.environ.update(child_environment(config))
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
