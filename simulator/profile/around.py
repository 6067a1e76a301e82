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
from simulator.profile.probes import ONE_BY_ONE, Crowd, Probe
from simulator.profile.rehearsal import Needs, rehearse, rehearse_crowd
from simulator.profile.steps import has_gpu, is_one_thread
from triptych.core.config import Config

STRENGTH = 1e-6
"""Of what is taken for granted where no probe tells: nothing around a step, and no slowdown."""
PLANNED = 0.2
"""Of what a job costs an instance that has its prompt computed, the share that is done between
steps: planning the prompt and taking in its end. Measured by hand (ADR 26), since no probe tells
when within a request something was worked."""
ROUNDS = 3
"""Of counting and solving: how requests share steps depends on how long everything takes."""
LEAST_S = 1e-4
"""Errors of smaller figures than this count as if they were as large."""

Pairs = list[tuple[float, float]]


def around(
    config: Config,
    card: Card,
    probes: Sequence[Probe],
    known: Overheads,
) -> tuple[Overheads, dict[str, FitError]]:
    """Everything around the steps, and how well it explains the probes: ``client``, ``router``,
    ``instances`` in seconds of the processor, ``ttft`` and ``tpot`` of requests asked alone.
    ``known``: of the machine and the executors."""
    picture_s, megapixel_s = _decoding(probes)
    found = msgspec.structs.replace(
        known,
        encodes_alone=not has_gpu(config),
        picture_s=picture_s,
        megapixel_s=megapixel_s,
    )
    pairs: dict[str, Pairs] = {}
    for _ in range(ROUNDS):
        needs = [rehearse(config, card, probe, found) for probe in probes]
        found, pairs = _work(probes, needs, found, is_one_thread(config))
        found = _behind(probes, found)
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


def crowded(
    config: Config, card: Card, asked: tuple[Sequence[Probe], Sequence[Crowd]], found: Overheads
) -> dict[str, FitError]:
    """How well requests side by side are met by what was found of requests alone: ``crowd work``,
    seconds of the processor, ``crowd ttft`` and ``crowd tpot``. Nothing is fitted to them."""
    probes, crowds = asked
    lengths = {probe.kind.name: probe.num_prompt for probe in probes}
    both = [(rehearse_crowd(config, card, crowd, lengths, found), crowd) for crowd in crowds]
    return {
        "crowd work": fit_error((one.work_s, crowd.worked_s) for one, crowd in both),
        "crowd ttft": fit_error((one.ttft_s, crowd.ttft_s) for one, crowd in both),
        "crowd tpot": fit_error((one.tpot_s, crowd.tpot_s) for one, crowd in both if crowd.tpot_s),
    }


def _work(
    probes: Sequence[Probe], needs: Sequence[Needs], known: Overheads, steps_are_work: bool
) -> tuple[Overheads, dict[str, Pairs]]:
    """What is work, once it is known how many steps and messages each probe needs.
    ``steps_are_work``: of the processor; else their seconds are a device's."""
    client, of_client = _handling(probes, needs, lambda probe: probe.client_s, "wakes", "")
    router, of_router = _handling(probes, needs, lambda probe: probe.router_s, "batches", "jobs")
    found, of_instances = _instances(probes, needs, known, steps_are_work)
    found = msgspec.structs.replace(found, client=client, router=router)
    return found, {"client": of_client, "router": of_router, "instances": of_instances}


def _behind(probes: Sequence[Probe], found: Overheads) -> Overheads:
    """What of the work for requests and jobs nobody waits for, as probes tell whose answer is one
    token; of an instance, those with one job."""
    told = [probe for probe in probes if probe.behind_s]
    whole = [probe for probe in told if is_whole(probe) and not probe.kind.sides]

    def parted(handling: Handling, what: str, part: str, some: list[Probe]) -> Handling:
        all_s = getattr(handling, what)
        ended_s = min(all_s, median(probe.behind_s[part] for probe in some)) if some else 0.0
        return msgspec.structs.replace(handling, **{what: all_s - ended_s}, ended_s=ended_s)

    return msgspec.structs.replace(
        found,
        client=parted(found.client, "request_s", "client", told),
        router=parted(found.router, "request_s", "router", told),
        instance=parted(found.instance, "job_s", "instances", whole),
    )


def _handling(
    probes: Sequence[Probe],
    needs: Sequence[Needs],
    worked: Callable[[Probe], float],
    batches: str,
    jobs: str,
) -> tuple[Handling, Pairs]:
    """What requests, pictures, text and tokens cost a client or a router, and whatever counts there
    as a batch and as a job."""
    names = ("requests", "pictures", "text", "tokens", batches, jobs)
    rows = [[need.counts.get(name, 0.0) for name in names] for need in needs]
    values = [worked(probe) for probe in probes]
    found, pairs = _solved(rows, values, [0.0] * len(names))
    request_s, picture_s, text_s, token_s, batch_s, job_s = found
    handling = Handling(
        request_s=request_s,
        picture_s=picture_s,
        text_s=text_s,
        job_s=job_s,
        batch_s=batch_s,
        token_s=token_s,
    )
    return handling, pairs


def _instances(
    probes: Sequence[Probe], needs: Sequence[Needs], known: Overheads, steps_are_work: bool
) -> tuple[Overheads, Pairs]:
    """What steps, jobs, tokens and transfers cost the instances of a request, all together."""
    names = ("seconds", "steps", "turns", "vision_steps", "jobs", "tokens", "transfers", "bytes")
    rows = [[need.counts.get(name, 0.0) for name in names] for need in needs]
    values = [sum(probe.instances_s.values()) for probe in probes]
    apart = [
        known.turn_token_s * need.counts.get("turn_tokens", 0.0)
        + known.turn_prompt_s * need.counts.get("turn_prompts", 0.0)
        for need in needs
    ]
    found, pairs = _solved(rows, values, [1.0, *[0.0] * 7], apart)
    if steps_are_work and found[0] < 1.0:
        # A step is no less work in a server than alone: what surrounds it is less.
        apart = [part + row[0] for part, row in zip(apart, rows, strict=True)]
        others, pairs = _solved([row[1:] for row in rows], values, [0.0] * 7, apart)
        found = [1.0, *others]
    slowdown, step_s, turn_s, vision_step_s, job_s, token_s, transfer_s, byte_s = found
    return msgspec.structs.replace(
        known,
        turn_prompt_s=known.turn_prompt_s or PLANNED * job_s,
        slowdown=slowdown,
        step_s=step_s,
        turn_s=turn_s,
        vision_step_s=vision_step_s,
        instance=Handling(job_s=job_s, token_s=token_s),
        transfer_s=transfer_s,
        transfer_byte_s=byte_s,
    ), pairs


def _solved(
    rows: Sequence[Sequence[float]],
    values: Sequence[float],
    prior: Sequence[float],
    known: Sequence[float] = (),
) -> tuple[list[float], Pairs]:
    """Coefficients with the least relative errors, and pairs of explained and measured; ``known``
    is explained already of each."""
    sums, known = Sums(len(prior)), known or [0.0] * len(values)
    for row, value, part in zip(rows, values, known, strict=True):
        scale = max(value, LEAST_S)
        sums.add([each / scale for each in row], (value - part) / scale)
    found = sums.solve(prior, STRENGTH)
    explained = [
        part + sum(a * b for a, b in zip(row, found, strict=True))
        for row, part in zip(rows, known, strict=True)
    ]
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


def is_whole(probe: Probe) -> bool:
    """Whether one instance did everything."""
    return "," not in probe.topology


def _waits(config: Config, card: Card, probes: Sequence[Probe], known: Overheads) -> Overheads:
    """Waits, one after the other: of turns and of steps from the paces of an answer (and what a
    sequence adds from those of several), of messages from the first token of texts, of pictures and
    of transfers from theirs."""
    alone = [probe for probe in probes if probe.kind.at_once == 1]
    texts = [probe for probe in alone if not probe.kind.sides and not probe.settings]

    def late_s(some: Sequence[Probe], what: str, now: Overheads) -> float:
        """What requests took longer than their rehearsals."""
        rehearsed = [(probe, rehearse(config, card, probe, now)) for probe in some]
        later = [getattr(probe, what) - getattr(needs, what) for probe, needs in rehearsed]
        return median(later) if later else 0.0

    def waiting(
        now: Overheads, some: Sequence[Probe], what: str, wait: str, times: float = 1
    ) -> Overheads:
        """With the wait that explains it best; it is met ``times`` on the way. What waits beside
        other work costs less than it lasts, or nothing, so more of it is tried."""
        left_s, wait_s, best = late_s(some, what, now), 0.0, now
        least_s = abs(left_s)
        for _ in range(TRIES):
            wait_s = max(0.0, wait_s + left_s / times)
            longer = msgspec.structs.replace(now, **{wait: wait_s})
            left_s = late_s(some, what, longer)
            if abs(left_s) < least_s - NEGLIGIBLE_S:
                best, least_s = longer, abs(left_s)
            if not wait_s or least_s < NEGLIGIBLE_S:
                break
        return best

    waits = (
        "turn_wait_s",
        "turn_token_s",
        "step_wait_s",
        "step_token_wait_s",
        "hop_s",
        "picture_wait_s",
        "transfer_wait_s",
    )
    known = msgspec.structs.replace(known, **dict.fromkeys(waits, 0.0))
    paced = [probe for probe in alone if is_whole(probe) and probe.kind.num_output > 1]
    one_by_one = [probe for probe in paced if probe.settings == ONE_BY_ONE]
    known = waiting(known, one_by_one or paced, "tpot_s", "turn_wait_s")
    several = [probe for probe in probes if is_whole(probe) and probe.kind.at_once > 1]
    at_once = max((probe.kind.at_once for probe in several), default=1)
    crowd = [probe for probe in several if probe.settings == ONE_BY_ONE]
    known = waiting(known, crowd, "tpot_s", "turn_token_s", at_once)
    if one_by_one:  # else all is in the turn
        known = waiting(known, [p for p in paced if not p.settings], "tpot_s", "step_wait_s")
        crowd = [probe for probe in several if not probe.settings]
        known = waiting(known, crowd, "tpot_s", "step_token_wait_s", at_once)
    known = waiting(known, [one for one in texts if is_whole(one)], "ttft_s", "hop_s", NUM_HOPS)
    pictured = [one for one in alone if is_whole(one) and len(one.kind.sides) == 1]
    known = waiting(known, pictured, "ttft_s", "picture_wait_s")
    apart = [one for one in alone if not is_whole(one)]
    return waiting(known, [one for one in apart if one.kind.sides], "ttft_s", "transfer_wait_s")


NUM_HOPS = 4
"""Of a text's first token: client, router, instance, and back."""
TRIES = 8
"""To find a wait."""
NEGLIGIBLE_S = 1e-5
"""By which a wait need not be known better."""
