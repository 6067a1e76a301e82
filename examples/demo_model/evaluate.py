"""Measures the demo model's exact-match accuracy by kind on fresh held-out questions.

Knows which kinds are advertised and the accuracy they must reach. Does not know
how a backend computes an answer.

    python examples/demo_model/evaluate.py --questions 1000 --seed 1
    python examples/demo_model/evaluate.py --backend http --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from backends import Backend, grpc_backend, http_backend, transformers_backend
from questions import KINDS, Example, Size, fresh_example

HERE = Path(__file__).resolve().parent
OVERALL_TARGET = 0.90
KIND_TARGET = 0.80


def draw_size(rng: random.Random) -> Size:
    """A held-out picture size: mostly small, one in ten odd, one in ten up to 448 pixels."""
    lottery = rng.random()
    if lottery < 0.35:
        return 112, 112
    if lottery < 0.45:
        return rng.randint(112, 224), rng.randint(112, 224)
    if lottery < 0.55:
        return rng.choice([(280, 280), (336, 336), (448, 448), (448, 280), (280, 392)])
    return rng.choice(range(112, 225, 28)), rng.choice(range(112, 225, 28))


def held_out(count: int, seed: int, kinds: tuple[str, ...]) -> list[Example]:
    """Questions spread evenly over the kinds; no training seed starts with ``held-out``."""
    examples = []
    for index in range(count):
        rng = random.Random(f"held-out/{seed}/{index}")
        sizes = (draw_size(rng), draw_size(rng))
        examples.append(fresh_example(kinds[index % len(kinds)], rng, sizes))
    return examples


def normalised(answer: str) -> str:
    """An answer without the white space around it; nothing else is forgiven."""
    return answer.strip()


def report(examples: list[Example], answers: list[str], shown: int) -> bool:
    """Print the table of accuracy by kind, and say whether every target was met."""
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    for example, answer in zip(examples, answers, strict=True):
        asked[example.kind] += 1
        hit = normalised(answer) == example.answer
        right[example.kind] += hit
        if not hit and shown > 0:
            shown -= 1
            sizes = [(picture.width, picture.height) for picture in example.pictures]
            print(f"  {example.kind} {sizes} {example.question!r}: {answer!r}, ", end="")
            print(f"not {example.answer!r}")
    print(f"| {'kind':<14} | questions | right | accuracy |")
    print(f"| {'-' * 14} | --------: | ----: | -------: |")
    for kind in KINDS:
        if asked[kind]:
            share = right[kind] / asked[kind]
            print(f"| {kind:<14} | {asked[kind]:>9} | {right[kind]:>5} | {share:>8.1%} |")
    overall = sum(right.values()) / sum(asked.values())
    total, hits = sum(asked.values()), sum(right.values())
    print(f"| {'overall':<14} | {total:>9} | {hits:>5} | {overall:>8.1%} |")
    return overall >= OVERALL_TARGET and all(
        right[kind] >= KIND_TARGET * asked[kind] for kind in asked
    )


def choose_backend(options: argparse.Namespace) -> Backend:
    """The backend that the command line names."""
    if options.backend == "http":
        return http_backend(options.url, options.parallel)
    if options.backend == "grpc":
        return grpc_backend(options.address, options.parallel)
    return transformers_backend(options.folder)


def main() -> int:
    """Draw the questions, ask them, print the table; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--backend", choices=["transformers", "http", "grpc"], default="transformers"
    )
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--address", default="127.0.0.1:50051", help="of the gRPC door")
    parser.add_argument("--parallel", type=int, default=4, help="requests in flight at a server")
    parser.add_argument("--show-wrong", type=int, default=0, help="wrong answers to print")
    options = parser.parse_args()
    examples = held_out(options.questions, options.seed, tuple(options.kinds))
    requests = [([p.draw() for p in example.pictures], example.question) for example in examples]
    backend = choose_backend(options)
    started = time.monotonic()
    answers = backend(requests)
    seconds = time.monotonic() - started
    passed = report(examples, answers, options.show_wrong)
    print(f"{len(requests)} questions in {seconds:.1f} s, backend {options.backend}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
