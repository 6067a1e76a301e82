"""``python -m cli.gpu``: every kernel, stage and model row on this GPU, beside its floor.

With ``--toy`` the same rows at toy sizes on a CPU: they show that the command works, nothing else.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cli.gpu import attention, moves, peer, whole
from cli.gpu.groups import Budget, Group, run
from cli.gpu.kit import Setup, kit
from cli.gpu.rows import Row
from cli.gpu.sizes import REAL, TOY, Sizes
from cli.gpu.table import plot, table, write
from cli.gpu.timing import Timer, rates
from triptych.core.errors import ConfigError
from triptych.executor.models.config import ModelSpec

_LIMIT_S, _TOY_LIMIT_S = 2.0, 0.005
"""Of the runs of one case."""


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="gpu", description=__doc__)
    top.add_argument("--minutes", type=float, default=8.0, help="rows beyond are skipped")
    top.add_argument("--toy", action="store_true", help="toy sizes, on the CPU")
    top.add_argument("--kernels", choices=("auto", "plain", "triton"), default="auto")
    top.add_argument("--only", default="", help="rows whose name has this, as `decode: decode 8`")
    top.add_argument("--no-transformers", action="store_true")
    top.add_argument("--no-flex", action="store_true", help="without FlexAttention")
    top.add_argument("--out", type=Path, help="a file of JSON")
    top.add_argument("--plot", type=Path, help="a PNG; needs matplotlib")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; 1 if a row failed. Where there is no GPU, and no toy is asked for, nothing
    is measured: 0."""
    words = parser().parse_args(arguments)
    if not words.toy and not torch.cuda.is_available():
        print("skipped: this machine has no CUDA device (--toy runs the same rows on the CPU)")
        return 0
    if words.plot is not None and find_spec("matplotlib") is None:
        print("gpu: --plot needs matplotlib", file=sys.stderr)
        return 2
    budget = Budget(words.minutes, is_toy=words.toy)
    device = torch.device("cpu" if words.toy else "cuda")
    sizes, rows = TOY if words.toy else REAL, list[Row]()
    try:
        groups = _groups(words, sizes)
        with torch.inference_mode():
            setup = _setup(words, device, sizes)
            machine = _machine(device, setup)
            for row in run(groups, setup, budget):
                rows.append(row)
                _put_beside(rows)
                if words.out is not None:  # row by row: a run that is cut short has its use
                    write(words.out, rows, setup.rates, machine)
    except ConfigError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    line = ", ".join(f"{name} {value}" for name, value in machine.items())
    print(table(rows, setup.rates, line))
    if words.plot is not None:
        plot(words.plot, rows, line)
    return int(any(row.is_broken for row in rows))


def _setup(words: argparse.Namespace, device: torch.device, sizes: Sizes) -> Setup:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    timer = Timer(device, _TOY_LIMIT_S if words.toy else _LIMIT_S)
    spec: ModelSpec = sizes.spec
    return Setup(
        device,
        dtype,
        sizes,
        kit(words.kernels, device, spec, sizes.block_size),
        timer,
        rates(timer, sizes, device, dtype),
        not words.no_flex,
    )


def _groups(words: argparse.Namespace, sizes: Sizes) -> list[Group]:
    """What matters most comes first: time may run out."""
    every = [*whole.groups(sizes), attention.group(sizes), moves.group(sizes)]
    if not words.no_transformers:
        every.append(peer.group(sizes))
    kept = [
        group._replace(
            cases=[case for case in group.cases if words.only in f"{group.name}: {case.name}"]
        )
        for group in every
    ]
    if not any(group.cases for group in kept):
        raise ConfigError(f"--only {words.only}: no row has that name")
    return kept


def _put_beside(rows: Sequence[Row]) -> None:
    """The peer's figures also stand beside ours."""
    theirs = {row.name: row.measured for row in rows if row.group == peer.NAME}
    for row in rows:
        found = theirs.get(row.name)
        if row.group != peer.NAME and found is not None:
            row.beside[peer.NAME] = found.median


def _machine(device: torch.device, setup: Setup) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else "toy sizes on a CPU"
    return {
        "device": name,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "kernels": setup.kit.name,
        "dtype": str(setup.dtype).removeprefix("torch."),
    }


if __name__ == "__main__":
    sys.exit(main())
