"""Runs that were never measured: a few servers in a row with waiting lines, enough for a report."""

import random

from bench.run import Busy, Change, Queue, Row, Run
from bench.study import Fit, Study
from triptych.core.metrics import slo_class

STAGES = ("encode", "prefill", "decode")
SLOS = ("interactive", "interactive", "interactive", "strict", "multi-image")


def drawn_run(system="E2,P2,D4", rate=8.0, seed=0, *, servers=(2, 2, 4), slow=1.0,
              duration_s=60.0, warmup_s=10.0):  # fmt: skip
    """``servers``: instances of each stage; ``slow`` stretches every service time."""
    source = random.Random(f"{system} {rate} {seed}")
    pools = {stage: [0.0] * count for stage, count in zip(STAGES, servers, strict=True)}
    rows, busy, queues, at_s = [], [], [], 0.0
    while (at_s := at_s + source.expovariate(rate)) < duration_s:
        rows.append(_row(len(rows), at_s, source, pools, slow, busy))
        for stage, free in pools.items():
            for number, free_s in enumerate(free):
                waiting = int(max(0.0, free_s - at_s) / 0.4)
                queues.append(Queue(f"{stage}-{number}", at_s, waiting, int(free_s > at_s)))
    changes = (
        Change("decode-0", duration_s * 0.4, "role", "prefill to decode"),
        Change("encode-0", duration_s * 0.7, "lost", "killed"),
    )
    return Run(
        system=system,
        workload="synthetic",
        rate=rate,
        seed=seed,
        num_gpus=float(sum(servers)),
        duration_s=duration_s,
        rows=tuple(rows),
        warmup_s=warmup_s,
        busy=tuple(busy),
        queues=tuple(queues),
        changes=changes,
        joules=400.0 * sum(servers) * duration_s,
    )


def _row(number, at_s, source, pools, slow, busy):
    images = source.choice((0, 1, 1, 1, 2, 4))
    tokens = source.randint(8, 120)
    name = source.choice(SLOS)
    slo = slo_class(name, images)
    work = {
        "encode": images * 0.09 * slow * source.uniform(0.7, 1.4),
        "prefill": (0.12 + 0.05 * images) * slow * source.uniform(0.7, 1.4),
    }
    now, route, phases, queue_s = at_s, [], {}, 0.0
    for stage, work_s in work.items():
        if not work_s:
            continue
        place = min(range(len(pools[stage])), key=lambda each: pools[stage][each])
        start = max(now, pools[stage][place])
        queue_s += start - now
        now = pools[stage][place] = start + work_s
        route.append(f"{stage}-{place}")
        phases[stage] = work_s
        busy.append(Busy(route[-1], stage, start, now, 1, 900 * max(images, 1)))
        if stage == "encode":
            phases["encode_transfer"] = 0.004 * images
            busy.append(Busy(route[-1], "transfer", now, now + 0.01, 1))
            now += phases["encode_transfer"]
    place = source.randrange(len(pools["decode"]))
    step = 0.016 * slow * source.uniform(0.8, 1.5) * (1 + 0.02 * queue_s)
    times = tuple(now + step * index * source.uniform(0.98, 1.02) for index in range(tokens))
    times = tuple(sorted(times))
    route.append(f"decode-{place}")
    for first in range(0, tokens, 10):
        begin = now + step * first
        busy.append(Busy(route[-1], "decode", begin, begin + step * min(10, tokens - first), 3))
    is_refused = queue_s > 6.0
    return Row(
        id=f"r{number}",
        arrival_s=at_s,
        slo=name,
        ttft_slo_s=slo.ttft_s,
        tpot_slo_s=slo.tpot_s,
        num_images=images,
        image_tokens=900 * images,
        prompt_tokens=900 * images + 200,
        status="refused" if is_refused else "ok",
        code="overloaded" if is_refused else "",
        end_s=at_s + 0.01 if is_refused else times[-1],
        token_times_s=() if is_refused else times,
        cached_tokens=150 if source.random() < 0.4 else 0,
        route=() if is_refused else tuple(route),
        phases={} if is_refused else {**phases, "queue": queue_s, "decode": times[-1] - now},
    )


def drawn_study(rates=(2.0, 4.0, 6.0, 8.0, 10.0, 12.0), seeds=(1, 2, 3), duration_s=60.0):
    """Three systems that differ."""
    kinds = {
        "Triptych E2,P2,D4": ((2, 2, 4), 1.0),
        "Monolith with Sarathi": ((1, 2, 5), 1.1),
        "E1,P3,D4 round robin": ((1, 3, 4), 1.2),
    }
    runs = tuple(
        drawn_run(name, rate, seed, servers=servers, slow=slow, duration_s=duration_s)
        for name, (servers, slow) in kinds.items()
        for rate in rates
        for seed in seeds
    )
    return Study(
        title="Image-heavy load on eight H200s",
        runs=runs,
        scenario='model = "Qwen2.5-VL-7B"\ntopology = "E2,P2,D4"\n[workload]\nname = "synthetic"\n',
        hardware="8 x H200, NVLink",
        fits=(
            Fit("decode step", "measured kernels", 412, 0.041, 0.18),
            Fit("vision step", "measured kernels", 96, 0.062, 0.21),
        ),
        price_per_gpu_hour=3.5,
        notes={"what": "drawn for a test, measured nowhere"},
    )
