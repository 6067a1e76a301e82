"""Sections ``router`` and ``admission`` of the configuration; see ``core.config``."""

import msgspec

from triptych.core.config_kinds import Count, Seconds, Share, Weight


class RouterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The doors and the path of a request."""

    http: str = "127.0.0.1:8000"
    """Address of the HTTP door."""
    grpc: str = "127.0.0.1:50051"
    """Address of the gRPC door."""
    admin: str = "127.0.0.1:8001"
    """Operators' door (census, ledger, instances); empty: none. Beyond loopback it needs a key."""
    admin_key: str = ""
    """Key of that door; empty asks for none."""
    max_attempts: Count = 3
    """Attempts of one request when instances are lost."""
    patience_s: Seconds = 30.0
    """How long a request waits for the replacement of a lost instance."""
    default_max_tokens: Count = 256
    """Output tokens when the client does not say."""
    api_keys: dict[str, str] = {}
    """Key to tenant; empty: no key is asked for and everybody is ``public``."""
    allow_remote_pictures: bool = False
    """Remote picture URLs. There is no fetcher yet: ``true`` is refused at start."""
    ledger: str = ""
    """File that every ledger event is appended to as a JSON line; empty keeps it in memory."""
    placement: str = "prefix_aware"
    """Policy that picks instances: ``prefix_aware`` (soonest first token, by what is cached where),
    ``slo`` (bounds kept at the least cost), ``least_loaded``, ``modality``, ``one_encoder`` (least
    loaded, but all pictures of a request to one encoder; for comparison) or ``round_robin``."""
    profile: str = ""
    """File as of ``engine.costs`` that predictions begin with; empty: they begin with a guess.
    Either way they are corrected by what is seen."""
    picture_share: Share = 0.5
    """Of the instances of a role that ``modality`` keeps for prompts with pictures."""
    roles: str = "static"
    """Policy of roles over time whose advice ``triptych advise`` shows (a simulator carries it
    out): ``static`` (none), ``epdserve``, ``modserve``, ``elasticmm`` or ``plan_ahead``."""
    roles_period_s: Seconds = 1.0
    """That policy is asked this often; some of them answer less often."""


class AdmissionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is let in, and in which order; see ``docs/scheduling.md``."""

    policy: str = "count"
    """``count``: by ``limits.max_requests`` alone. ``slo``: besides, by what is predicted for the
    bounds that a request names; the others wait in the router for their turn."""
    queue: Count = 256
    """Requests that wait for their turn; one more turns away the last of the tenant of which most
    waits. ``slo`` only, as all that follows."""
    horizon_s: Seconds = 0.25
    """Work is let on to the instances while the idlest has at most so much to prefill: less is
    fairer, more keeps them busy while a router is."""
    slo_share: Share = 0.9
    """Of a bound that a prediction may use up and still be promised."""
    weights: dict[str, Weight] = {}
    """Share of each tenant in the service while all wait, in proportion; 1 where none is named."""
