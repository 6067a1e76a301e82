"""What surrounds the steps, from probes: work by least squares, waits from what is left over.

Every probe's processor time is a sum of things that its rehearsal counted, each times an unknown
that is not negative. What a request, asked alone, takes longer on the wall's clock than in virtual
time with that work is what threads and messages wait. Knows probes and costs; runs no server.
"""

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from scheduler.fitted import FitError, fit_error
from scheduler.regression import Sums
from simulator.costs.card import Card
from simulator.costs.overheads import Handling, Overheads
from simulator.profile.probes import Probe
from simulator.profile.rehearsal import Needs, rehearse
from simulator.profile.steps import has_gpu
from triptych.core.config import Config

STRENGTH = 1e-6
"""Of what is taken for granted where no probe tells: nothing around a step, and no slowdown."""
ROUNDS = 3
"""Of counting and solving: how requests share steps depends on how long everything takes."""
LEAST_S = 1e-4
"""Errors of smaller figures than this count as if they were as large."""

Pairs = list[tuple[float, float]]


def around(
    config: Config,
    card: Card,
    probes: Sequence[Probe],
    speeds: Sequence[float],
    *,
    frees_lock: bool,
) -> tuple[Overheads, dict[str, FitError]]:
    """Everything around the steps, and how well it explains the probes: ``client``, ``router``,
    ``instances`` in seconds of the processor, ``ttft`` and ``tpot`` of requests asked alone.
    ``speeds`` and ``frees_lock``: see ``Overheads``."""
    picture_s, megapixel_s = _decoding(probes)
    found = Overheads(
        speeds=tuple(speeds),
        frees_lock=frees_lock,
        encodes_alone=not has_gpu(config),
        picture_s=picture_s,
        megapixel_s=megapixel_s,
    )
    pairs: dict[str, Pairs] = {}
    for _ in range(ROUNDS):
        needs = [rehearse(config, card, probe, found) for probe in probes]
        found, pairs = _work(probes, needs, found)
        found = _waits(config, card, probes, found)
    errors = {part: fit_error(each) for part, each in pairs.items()}
    alone = [probe for probe in probes if probe.kind.at_once == 1]
    again = [rehearse(config, card, probe, found) for probe in alone]
    ttft = [(need.ttft_s, probe.ttft_s) for probe, need in zip(alone, again, strict=True)]
    tpot = [
        (need.tpot_s, probe.tpot_s)
        for probe, need in zip(alone, again, strict=True)
        if probe.kind.num_output > 1
    ]
    return found, errors | {"ttft": fit_error(ttft), "tpot": fit_error(tpot)}


def _work(
    probes: Sequence[Probe], needs: Sequence[Needs], known: Overheads
) -> tuple[Overheads, dict[str, Pairs]]:
    """What is work, once it is known how many steps and messages each probe needs."""
    client, of_client = _handling(probes, needs, lambda probe: probe.client_s, ())
    router, of_router = _handling(probes, needs, lambda probe: probe.router_s, ("jobs", "batches"))
    instances, of_instances = _instances(probes, needs)
    found = msgspec.structs.replace(
        instances,
        client=client,
        router=router,
        picture_s=known.picture_s,
        megapixel_s=known.megapixel_s,
        speeds=known.speeds,
        frees_lock=known.frees_lock,
        encodes_alone=known.encodes_alone,
    )
    return found, {"client": of_client, "router": of_router, "instances": of_instances}


def _handling(
    probes: Sequence[Probe],
    needs: Sequence[Needs],
    worked: Callable[[Probe], float],
    more: tuple[str, ...],
) -> tuple[Handling, Pairs]:
    """What requests, pictures, text and tokens cost a client or a router."""
    names = ("requests", "pictures", "text", "tokens", *more)
    rows = [[need.counts.get(name, 0.0) for name in names] for need in needs]
    values = [worked(probe) for probe in probes]
    found, pairs = _solved(rows, values, [0.0] * len(names))
    request_s, picture_s, text_s, token_s = found[:4]
    job_s, batch_s = found[4:] if more else (0.0, 0.0)
    handling = Handling(
        request_s=request_s,
        picture_s=picture_s,
        text_s=text_s,
        job_s=job_s,
        batch_s=batch_s,
        token_s=token_s,
    )
    return handling, pairs


def _instances(probes: Sequence[Probe], needs: Sequence[Needs]) -> tuple[Overheads, Pairs]:
    """What steps, jobs, tokens and transfers cost the instances of a request, all together."""
    names = ("seconds", "steps", "vision_steps", "jobs", "tokens", "transfers", "bytes")
    rows = [[need.counts.get(name, 0.0) for name in names] for need in needs]
    values = [sum(probe.instances_s.values()) for probe in probes]
    found, pairs = _solved(rows, values, [1.0, *[0.0] * 6])
    slowdown, step_s, vision_step_s, job_s, token_s, transfer_s, byte_s = found
    return Overheads(
        slowdown=slowdown,
        step_s=step_s,
        vision_step_s=vision_step_s,
        instance=Handling(job_s=job_s, token_s=token_s),
        transfer_s=transfer_s,
        transfer_byte_s=byte_s,
    ), pairs


def _solved(
    rows: Sequence[Sequence[float]], values: Sequence[float], prior: Sequence[float]
) -> tuple[list[float], Pairs]:
    """Coefficients with the least relative errors, and pairs of explained and measured."""
    sums = Sums(len(prior))
    for row, value in zip(rows, values, strict=True):
        scale = max(value, LEAST_S)
        sums.add([each / scale for each in row], value / scale)
    found = sums.solve(prior, STRENGTH)
    explained = [sum(a * b for a, b in zip(row, found, strict=True)) for row in rows]
    pairs = [(a, b) for a, b in zip(explained, values, strict=True) if b > LEAST_S]
    return found, pairs


def _decoding(probes: Sequence[Probe]) -> tuple[float, float]:
    """Seconds for a picture and for a million of its pixels."""
    sums = Sums(2)
    for probe in probes:
        sides = probe.kind.sides
        if sides and probe.decoders_s > 0.0:
            megapixels = sum(side * side for side in sides) / 1e6
            scale = probe.decoders_s
            sums.add([len(sides) / scale, megapixels / scale], 1.0)
    picture_s, megapixel_s = sums.solve((0.0, 0.0), STRENGTH)
    return picture_s, megapixel_s


def _waits(config: Config, card: Card, probes: Sequence[Probe], known: Overheads) -> Overheads:
    """Waits, one after the other: of steps from the pace of an answer, of messages from the first
    token of a text, of pictures and of transfers from theirs."""

    def left(is_one: Callable[[Probe], bool], what: str, now: Overheads) -> float:
        some = [probe for probe in probes if probe.kind.at_once == 1 and is_one(probe)]
        return (
            median(
                getattr(probe, what) - getattr(rehearse(config, card, probe, now), what)
                for probe in some
            )
            if some
            else 0.0
        )

    def is_whole(probe: Probe) -> bool:
        return "," not in probe.topology

    late_s = left(lambda one: is_whole(one) and one.kind.num_output > 1, "tpot_s", known)
    if late_s < 0.0:  # what is told of a step is told while the next one runs
        told_s = min(known.step_s, -late_s)
        instance = msgspec.structs.replace(known.instance, token_s=known.instance.token_s + told_s)
        known = msgspec.structs.replace(known, step_s=known.step_s - told_s, instance=instance)
    known = msgspec.structs.replace(known, step_wait_s=max(0.0, late_s))
    first_s = left(lambda one: is_whole(one) and one.kind.name == "text", "ttft_s", known)
    known = msgspec.structs.replace(known, hop_s=max(0.0, first_s) / NUM_HOPS)
    picture_s = left(lambda one: is_whole(one) and len(one.kind.sides) == 1, "ttft_s", known)
    known = msgspec.structs.replace(known, picture_wait_s=max(0.0, picture_s))
    moved_s = left(lambda one: not is_whole(one) and one.kind.name == "text", "ttft_s", known)
    return msgspec.structs.replace(known, transfer_wait_s=max(0.0, moved_s))


NUM_HOPS = 4
"""Of a text's first token: client, router, instance, and back."""
