"""``triptych profile``: what steps, and everything around them, take on this machine."""

import argparse
from pathlib import Path

import msgspec

from cli.progress import Bar
from cli.serve import configure
from simulator.costs.card import to_json
from simulator.profile.profile import QUICK, Effort, Profile, machine_name, profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", metavar="DIR", help="model folder, or: oracle")
    parser.add_argument("--config", metavar="FILE", type=Path, help="configuration (TOML)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="section.key=value"
    )
    parser.add_argument("--out", type=Path, default=Path("profile.json"), help="the card")
    parser.add_argument("--quick", action="store_true", help="rough figures in seconds")
    parser.add_argument("--steps-only", action="store_true", help="start no server")
    parser.add_argument("--date", default="", help="written into the card")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write every measurement")


def run(words: argparse.Namespace) -> int:
    """Measure, write the card, show how well it fits."""
    words.topology = "EPD1"
    config = configure(words)
    effort = QUICK if words.quick else Effort()
    if words.steps_only:
        effort = msgspec.structs.replace(effort, topologies=())
    bar = Bar()
    source = ", ".join(filter(None, (machine_name(), f"model {config.model.path}", words.date)))
    found = profile(config, source, effort, bar)
    bar.done()
    words.out.write_bytes(to_json(found.card))
    if words.raw is not None:
        words.raw.write_bytes(msgspec.json.encode(found))
    print(table(found))
    print(f'written: {words.out}   (costs = "file:{words.out}" in a scenario)')
    return 0


def table(found: Profile) -> str:
    """Errors of every part, and what surrounds the steps."""
    lines = [f"{'part':<10} {'points':>6} {'mean':>7} {'p50':>7} {'p99':>7} {'bias':>7}"]
    for part, error in found.card.costs.errors.items():
        shares = (error.mean, error.p50, error.p99)
        figures = " ".join(f"{share:7.1%}" for share in shares)
        lines.append(f"{part:<10} {error.num_points:6} {figures} {error.bias:+7.1%}")
    noise = sorted(each.spread for each in found.timed)
    lines.append(f"repetitions differ by {noise[len(noise) // 2]:.1%} (median of half quartiles)")
    around = found.card.overheads
    if around is not None:
        lines.append(
            f"around: step {around.step_s * 1e3:.2f} ms, "
            f"turn {around.turn_s * 1e3:.2f} ms (+{around.turn_wait_s * 1e3:.2f} waiting), "
            f"slowdown {around.slowdown:.2f}, request {around.router.request_s * 1e3:.2f} ms, "
            f"token {around.router.token_s * 1e6:.0f} us, hop {around.hop_s * 1e3:.2f} ms, "
            f"transfer {around.transfer_s * 1e3:.2f} ms, "
            f"cores {' '.join(f'{each:.2f}' for each in around.speeds) or 'their own'}"
        )
    return "\n".join(lines)
