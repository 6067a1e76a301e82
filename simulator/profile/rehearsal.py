"""Probes in virtual time: the same requests on modelled executors, and what each of them needs.

Says how many steps, jobs, messages and transfers a request is, since the engines are the server's
own, and how long it takes with what is known so far.
"""

from collections.abc import Mapping
from statistics import fmean, median

import msgspec

from bench.workload import Arrival, Text
from simulator.costs.card import Card
from simulator.costs.overheads import Overheads
from simulator.hardware import Hardware
from simulator.host import SimulatedHost
from simulator.profile.probes import Crowd, Probe
from simulator.run import Plan, simulate
from triptych.core.config import Config, override

QUIET = (
    "cluster.secret=simulated",
    "cluster.heartbeat_s=5",
    "cluster.timeout_s=30",
    "cluster.verify_idle=false",
    "transfer.lease_s=60",
)
"""What only a real server needs, and virtual time does not."""

TURN_END = 8
"""Tokens that a template writes behind a user's turn, about."""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Of one request of a probe, in the mean."""

    counts: dict[str, float]
    """As ``Threads.counts``."""
    ttft_s: float
    tpot_s: float


def plan_of(config: Config, card: Card, topology: str, overheads: Overheads) -> Plan:
    """A run of a configuration, as it is, on a machine like the profiled one."""
    config = override(config, (*QUIET, f"cluster.topology={topology}"))
    hardware = Hardware(
        model="profiled",
        cards={"": card},
        start_s=0.0,
        overheads=overheads,
        has_shared_cores=bool(overheads.speeds),
    )
    return Plan(
        system=topology,
        workload="profile",
        config=config,
        hardware=hardware,
        rate=0.0,
        duration_s=1.0,
    )


def as_counted(arrival: Arrival, num_prompt: int) -> Arrival:
    """The same request with as many text tokens as the server found in its prompt. What its
    template adds stands before the pictures, the same in all prompts, but for the end of a turn."""
    pictures = arrival.images
    num_text = max(1, num_prompt - sum(each.num_tokens for each in pictures))
    head = Text(0, min(num_text - 1, max(0, num_text - arrival.num_text - TURN_END)))
    seed = next(part.seed for part in arrival.parts if isinstance(part, Text))
    rest = Text(seed, num_text - head.num_tokens)
    parts = (head, *pictures, rest) if head.num_tokens else (*pictures, rest)
    return msgspec.structs.replace(arrival, parts=parts)


def rehearse(config: Config, card: Card, probe: Probe, overheads: Overheads) -> Needs:
    """Run a probe's requests of one time."""
    plan = plan_of(override(config, probe.settings), card, probe.topology, overheads)
    count = probe.kind.at_once
    arrivals = [as_counted(probe.kind.arrival(n), probe.num_prompt) for n in range(count)]
    hosts: list[SimulatedHost] = []
    run = simulate(plan, arrivals, on_host=hosts.append)
    threads = hosts[0].threads
    assert threads is not None, "there are overheads"
    times = [row.token_times_s for row in run.rows]
    return Needs(
        counts={name: value / count for name, value in threads.counts.items()},
        ttft_s=median(row.token_times_s[0] - row.arrival_s for row in run.rows),
        tpot_s=median((each[-1] - each[0]) / max(1, len(each) - 1) for each in times),
    )


class Crowded(msgspec.Struct, frozen=True, kw_only=True):
    """What a crowd takes in virtual time."""

    work_s: float
    """Of the processor."""
    ttft_s: float
    tpot_s: float


def rehearse_crowd(
    config: Config, card: Card, crowd: Crowd, lengths: Mapping[str, int], overheads: Overheads
) -> Crowded:
    """Run a crowd's requests, whose prompts have ``lengths`` tokens by kind."""
    plan = plan_of(config, card, crowd.topology, overheads)
    arrivals = [
        as_counted(arrival, lengths[kind.name])
        for arrival, kind in zip(crowd.arrivals(0), crowd.kinds, strict=True)
    ]
    hosts: list[SimulatedHost] = []
    run = simulate(plan, arrivals, on_host=hosts.append)
    threads = hosts[0].threads
    assert threads is not None, "there are overheads"
    times = [row.token_times_s for row in run.rows]
    paces = [(each[-1] - each[0]) / (len(each) - 1) for each in times if len(each) > 1]
    return Crowded(
        work_s=threads.cores.work_s,
        ttft_s=fmean(row.token_times_s[0] - row.arrival_s for row in run.rows),
        tpot_s=fmean(paces) if paces else 0.0,
    )
