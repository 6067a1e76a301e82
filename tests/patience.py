"""How long a test waits for what must come.

Where everything is right nobody waits so long, so that it costs nothing; it is far more than a busy
machine needs, so that only what hangs fails. It knows nothing of what is waited for.
"""

PATIENCE_S = 120.0
CALM = (
    f"transfer.timeout_s={PATIENCE_S}",
    f"cluster.timeout_s={PATIENCE_S}",
    f"cluster.start_timeout_s={4 * PATIENCE_S}",
)
"""Settings with which who is only slow is not thought lost. Who is killed is missed at once."""
