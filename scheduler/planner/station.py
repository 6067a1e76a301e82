"""One pool in the closed form: what it can do alone, and its state under a load.

A server's queue holds encode and prefill jobs together, because one GPU does them; decode steps run
beside. Knows one pool and the shares of work that it was given; no other pool.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import msgspec

from scheduler.planner.decode import Decoding, Interruptions, Steps, settle
from scheduler.planner.demand import Demand, Moments, Service
from scheduler.planner.problem import D, E, P, Pool
from scheduler.planner.queueing import Wait, sharded_s, wait
from triptych.core.lifecycle import Stage

_IDLE = Decoding(0.0, 0.0, 0.0, 0.0, 0.0)


class State(msgspec.Struct, frozen=True):
    """Of one pool at one rate."""

    pool: Pool
    wait: Wait
    utilisation: float
    """Of the queue of encode and prefill; over 1 if overloaded."""
    service_cv2: float
    servers: float
    decoding: Decoding
    slope_s: float
    fits: float
    """Probability that the KV of those that decode fits, and with it the batch limit."""
    limit: float
    picture_s: float
    """Added to each picture: the decode step that runs between two."""
    chunk_s: float
    """Added to each chunk: the decodes that run in the same step."""
    used: tuple[bool, bool, bool]

    def serves(self, stage: Stage) -> bool:
        """Whether the pool has a part of the stage's work."""
        return self.used[(E, P, D).index(stage)]

    def busy(self, stage: Stage) -> float:
        """Utilisation as ``Estimate`` tells it."""
        return self.decoding.batch / self.limit if stage is D else self.utilisation


class Station:
    """A pool, what the workload is on it, and its share of each stage."""

    def __init__(self, pool: Pool, asked: Demand, steps: Steps, kv_tokens: float) -> None:
        self.pool, self.demand, self._steps = pool, asked, steps
        bounds = [one.slo.tpot_s for one in asked.services if one.slo.tpot_s is not None]
        quick = steps.largest(min(bounds)) if bounds else steps.max_decodes
        # Of ``pp`` groups of layers each has a batch of its own, and a part of the memory.
        self._kv_limit = kv_tokens / pool.kind.pp / asked.context
        self.limit = max(1e-9, min(float(quick), self._kv_limit))
        """Sequences of one batch at which TPOT is just met and KV fits."""
        self._most = max(1e-9, min(float(steps.max_decodes), self._kv_limit))
        self._shares = (0.0, 0.0, 0.0, 0.0)
        self._chunks = _moments(asked, lambda one: one.num_chunks)
        self._mixed = asked.mean(lambda one: one.prefill_s * one.num_chunks)
        self._imaged = 1.0 - asked.text_share
        only = pool.count if pool.role == {E} else 1
        self._spread = [
            (sharded_s(one.pictures, only), math.ceil(len(one.pictures) / only))
            for one in asked.services
        ]
        self._servers = float(pool.count)
        spread = asked.mean(lambda one: float(min(pool.count, len(one.pictures))))
        if pool.role == {E} and spread > 0.0:  # shares that sum to 1 do so but for rounding
            self._servers = pool.count * self._imaged / spread

    def take(self, encode: float, prefill: float, decode: float, local: float) -> None:
        """The shares of each stage; ``local`` of all requests both encode and prefill here."""
        self._shares = (encode, prefill, decode, local)

    def capacity(self) -> dict[Stage, float]:
        """Requests per second of each stage, if the pool did nothing else."""
        count, asked, kind = self.pool.count, self.demand, self.pool.kind
        seconds = {E: asked.encode.mean / kind.pp, P: asked.prefill.mean / kind.pp}
        able = {
            stage: count / seconds[stage] if seconds[stage] > 0.0 else math.inf
            for stage in (E, P)
            if stage in self.pool.role
        }
        if D in self.pool.role:
            tokens = max(asked.output.mean - 1.0, 1e-9)
            able[D] = count * kind.pp * self.limit / (self._steps.alone_s(self.limit) * tokens)
        return able

    def encode_s(self, index: int, state: State) -> float:
        """Seconds of the pictures of the sample's request ``index``, spread over the instances if
        they only encode (EPDServe's intra-request parallelism, ICML 2025)."""
        seconds, rounds = self._spread[index]
        return seconds + state.picture_s * rounds

    def prefill_s(self, index: int, state: State) -> float:
        """Seconds of the same request's chunks."""
        service = self.demand.services[index]
        return service.prefill_s + state.chunk_s * service.num_chunks

    def state(self, rate: float, arrival_cv2: float) -> State:
        """Settled state where ``rate`` requests per second arrive at the whole layout."""
        encode, prefill, decode, _ = self._shares
        decoding = self._decoding(rate) if decode > 0.0 else _IDLE
        is_mixed = decode > 0.0 and (encode > 0.0 or prefill > 0.0)
        batch = self.limit if math.isinf(decoding.batch) else decoding.batch
        # Between two pictures the decodes take a step, if there are any.
        picture_s = self._steps.alone_s(batch) * min(1.0, batch) if is_mixed else 0.0
        chunk_s = self._steps.beside_s(batch) if is_mixed else 0.0
        arrivals, service = self._queue(rate, picture_s, chunk_s)
        queue = wait(arrivals, service, self._servers, arrival_cv2)
        return State(
            pool=self.pool,
            wait=queue,
            utilisation=arrivals * service.mean / self._servers,
            service_cv2=service.cv2,
            servers=self._servers,
            decoding=decoding,
            slope_s=self._steps.slope_s(batch) if decode > 0.0 else 0.0,
            fits=self._fits(batch) if decode > 0.0 else 1.0,
            limit=self.limit,
            picture_s=picture_s,
            chunk_s=chunk_s,
            used=(encode > 0.0, prefill > 0.0, decode > 0.0),
        )

    def _decoding(self, rate: float) -> Decoding:
        encode, prefill, decode, _ = self._shares
        one = self.pool.count * self.pool.kind.pp
        others = Interruptions(
            encode_rate=rate * encode / one,
            encode=self.demand.encode,
            prefill_rate=rate * prefill / one,
            prefill=self.demand.prefill,
            chunks=self._chunks,
            prefill_chunks=self._mixed,
        )
        tokens = max(0.0, self.demand.output.mean - 1.0)
        return settle(self._steps, rate * decode / one * tokens, others, self._most)

    def _queue(self, rate: float, picture_s: float, chunk_s: float) -> tuple[float, Moments]:
        """Jobs per second at the pool's servers, and the moments of their seconds."""
        encode, prefill, _, local = self._shares
        remote, alone = max(0.0, encode - local), max(0.0, prefill - local)
        first = second = arrivals = 0.0
        for service in self.demand.services:
            encode_s = service.encode_s + picture_s * len(service.pictures)
            prefill_s = service.prefill_s + chunk_s * service.num_chunks
            jobs = ((local, encode_s + prefill_s), (remote, encode_s), (alone, prefill_s))
            for share, seconds in jobs:
                if share > 0.0 and seconds > 0.0:
                    arrivals += service.share * share
                    first += service.share * share * seconds
                    second += service.share * share * seconds**2
        if arrivals <= 0.0:
            return 0.0, Moments()
        # A job occupies one of ``pp`` groups of layers at a time; a request whose pictures are
        # spread over several encoders occupies each for a part of its time.
        part = self.pool.kind.pp * (self.pool.count / self._servers)
        return rate * arrivals, Moments(first / arrivals / part, second / arrivals / part**2)

    def _fits(self, batch: float) -> float:
        if batch <= 0.0:
            return 1.0
        # The number of sequences varies as in a queue without waiting: Poisson, nearly normal.
        return NormalDist(batch, math.sqrt(batch)).cdf(self._most + 0.5)


def _moments(asked: Demand, value: Callable[[Service], float]) -> Moments:
    return Moments(asked.mean(value), asked.mean(lambda one: value(one) ** 2))
