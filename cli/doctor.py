"""``triptych doctor``: what of this machine is usable, and what the server will therefore do.

Looks, never changes anything. Knows the configuration's ``auto`` values and what they become. Asks
torch in a child process: no tensors here, and a broken driver cannot take the doctor with it.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from cli import links
from cli.progress import Progress
from triptych.core.config import Config, load
from triptych.core.errors import ConfigError

_TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
count = torch.cuda.device_count() if cuda else 0
names = [torch.cuda.get_device_properties(i) for i in range(count)]
nccl = cuda and torch.distributed.is_available() and torch.distributed.is_nccl_available()
print(json.dumps({
    "cuda": cuda,
    "build": torch.version.cuda,
    "devices": [[p.name, p.total_memory, p.major * 10 + p.minor] for p in names],
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl else "",
}))
"""
_PACKAGES = ("torch", "ray", "grpcio", "msgspec", "starlette", "uvicorn", "tokenizers", "pillow")
_GIB = 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    found: str
    effect: str
    """What the server does because of it."""
    state: str = "ok"
    """``ok``, ``absent`` (nothing depends on it) or ``problem`` (the server will not work)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's own options."""
    parser.add_argument("--config", type=Path, help="TOML file to judge by")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--links", action="store_true", help="measure the ways of blocks instead")
    parser.add_argument("--link-sizes", type=_sizes, default=links.SIZES, metavar="BYTES,...")
    parser.add_argument("--link-huge", action="store_true", help="out of private huge pages")
    parser.add_argument("--link-bytes", type=int, default=links.FETCH_BYTES, help="of a transfer")
    parser.add_argument("--link-turns", type=int, default=links.TURNS)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 if the server cannot work here."""
    try:
        config = load(arguments.config, arguments.set)
    except ConfigError as error:
        print(f"triptych doctor: {error}", file=sys.stderr)
        return 2
    if arguments.links:
        return _measure_links(config, arguments)
    findings = examine(config)
    if arguments.json:
        print(json.dumps({"findings": [msgspec.to_builtins(finding) for finding in findings]}))
    else:
        _show(findings)
    return int(any(finding.state == "problem" for finding in findings))


def _sizes(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(","))


def _measure_links(config: Config, arguments: argparse.Namespace) -> int:
    progress = Progress()
    sizes, turns, whole = arguments.link_sizes, arguments.link_turns, arguments.link_bytes
    are_fitting = all(
        size <= whole <= min(links.MAX_FETCH_BYTES, links.MAX_BLOCKS * size) for size in sizes
    )
    if turns < 1 or not are_fitting or min(sizes) < links.LATENCY_BYTES:
        wanted = (
            f"wanted: --link-turns >= 1, {links.LATENCY_BYTES} <= --link-sizes <= --link-bytes <= "
            f"{links.MAX_FETCH_BYTES}, at most {links.MAX_BLOCKS} blocks"
        )
        print(f"triptych doctor: {wanted}", file=sys.stderr)
        return 2
    measuring = links.measure(
        config.transfer, sizes, turns, progress, fetch_bytes=whole, huge=arguments.link_huge
    )
    found = asyncio.run(measuring)
    progress.done()
    if arguments.json:
        print(json.dumps({"links": [msgspec.to_builtins(link, str_keys=True) for link in found]}))
        return 0
    print(links.table(found))
    digest = "on" if config.transfer.digest else "off"
    print(
        f"\nBlocks of these sizes, {links.named(whole)} a transfer; digests {digest}; medians of "
        f"{turns}."
    )
    return 0


def examine(config: Config) -> tuple[Finding, ...]:
    """Everything, machine first, decisions last."""
    torch = _ask_torch()
    machine = (
        _python(),
        _packages(),
        _cores(config),
        _memory(),
        _shared_memory(),
        _open_files(config),
        *_ports(config),
        _gpu(torch),
        _nccl(torch),
        _rdma(),
        _nixl(),
        _redis(config),
    )
    return machine + _decisions(config, torch)


def _python() -> Finding:
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Finding("python", system, "only Linux is supported", "problem")
    return Finding("python", system, "supported")


def _packages() -> Finding:
    versions, missing = [], []
    for name in _PACKAGES:
        version = _version(name)
        if version is None:
            missing.append(name)
        else:
            versions.append(f"{name} {version}")
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", "run make setup", "problem")
    return Finding("packages", ", ".join(versions), "complete")


def _version(package: str) -> str | None:
    """The installed version, if there is one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores(config: Config) -> Finding:
    cores = len(os.sched_getaffinity(0))
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    found = f"{cores} cores"
    if len(quota) == 2 and quota[0] != "max":
        found += f", limited to the time of {int(quota[0]) / int(quota[1]):.1f}"
    effect = f"{config.model.threads} arithmetic thread(s) per instance (model.threads)"
    return Finding("processor", found, effect)


def _memory() -> Finding:
    fields = dict(line.split(":") for line in _lines("/proc/meminfo") if ":" in line)
    total, free = (
        int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")
    )
    limit = _first_line("/sys/fs/cgroup/memory.max")
    if limit.isdigit():
        total, free = min(total, int(limit)), min(free, int(limit))
    found = f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB available"
    enough = free > 2 * _GIB
    effect = "enough for the demo model" if enough else "three pools need about 2 GiB"
    return Finding("memory", found, effect, "ok" if enough else "problem")


def _shared_memory() -> Finding:
    try:
        fd = os.memfd_create("triptych-doctor")
    except (AttributeError, OSError):
        return Finding("shared memory", "no memfd", "blocks move over tcp", "absent")
    os.close(fd)
    try:
        size = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("shared memory", "memfd; no /dev/shm", "Ray will spill to disk")
    found = f"memfd; /dev/shm {size.free / _GIB:.1f} of {size.total / _GIB:.1f} GiB free"
    return Finding("shared memory", found, "blocks move between processes with one copy")


def _open_files(config: Config) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 256 + 2 * config.limits.max_requests
    found = f"{soft} (at most {hard})"
    if 0 <= soft < need:
        effect = f"raise it: ulimit -n {need} for limits.max_requests={config.limits.max_requests}"
        return Finding("open files", found, effect, "problem")
    return Finding("open files", found, f"enough for {config.limits.max_requests} requests")


def _ports(config: Config) -> Iterable[Finding]:
    for name in ("http", "grpc", "admin"):
        if address := getattr(config.router, name):
            yield _port(f"{name} door", address, f"choose another: --set router.{name}=HOST:PORT")


def _port(name: str, address: str, otherwise: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_server((host.strip("[]"), int(port))):
            return Finding(name, address, "free")
    except OSError as error:
        return Finding(name, f"{address}: {error.strerror}", otherwise, "problem")
    except ValueError:
        return Finding(name, f"{address}: not HOST:PORT", otherwise, "problem")


def _gpu(torch: dict[str, Any]) -> Finding:
    devices = torch.get("devices", [])
    if devices:
        names = ", ".join(f"{name} ({memory / _GIB:.0f} GiB)" for name, memory, _ in devices)
        return Finding("GPU", f"{names}; CUDA {torch['build']}", "can be used")
    if torch.get("error"):
        return Finding("GPU", str(torch["error"]), "torch does not start", "problem")
    driver = Path("/proc/driver/nvidia/version").exists()
    if driver and not torch.get("build"):
        return Finding("GPU", "a driver, but a CPU build of torch", "not used", "absent")
    return Finding("GPU", "none", "everything runs on the CPU", "absent")


def _nccl(torch: dict[str, Any]) -> Finding:
    if torch.get("nccl"):
        return Finding(
            "NCCL", str(torch["nccl"]), "the way nccl, between instances with a GPU each"
        )
    return Finding("NCCL", "none", "the way nccl is not offered", "absent")


def _rdma() -> Finding:
    folder = Path("/sys/class/infiniband")
    devices = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if devices:
        return Finding("RDMA", ", ".join(devices), "used by the way nixl")
    return Finding("RDMA", "none", "the way nixl uses shared memory and TCP", "absent")


def _nixl() -> Finding:
    version = _version("nixl-cu13")
    if version is None:
        return Finding("NIXL", "none", "the way nixl is not offered (extra: nixl)", "absent")
    return Finding("NIXL", version, "a way for blocks between processes and hosts")


def _redis(config: Config) -> Finding:
    client = _version("redis")
    if config.cluster.directory == "embedded":
        return Finding("Redis", client or "no client", "not used: cluster.directory is embedded")
    effect = "keeps the directory" if client else "cluster.directory needs it (extra: redis)"
    return Finding("Redis", client or "no client", effect, "ok" if client else "problem")


def _decisions(config: Config, torch: dict[str, Any]) -> tuple[Finding, ...]:
    device = config.model.device
    if device == "auto":
        device = "cuda" if torch.get("cuda") else "cpu"
    state = "problem" if device.startswith("cuda") and not torch.get("cuda") else "ok"
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    transport = config.transfer.transport
    if transport == "auto":
        transport = "what both instances have and was measured to be quicker"
    topology = f"{config.cluster.topology} on {config.cluster.backend}"
    return (
        Finding("-> device", device, "model.device", state),
        Finding("-> dtype", dtype, "model.dtype"),
        Finding("-> transport", transport, "transfer.transport"),
        Finding("-> instances", topology, "cluster.topology, cluster.backend"),
        Finding("-> model", config.model.path, "model.path", _model_state(config.model.path)),
    )


def _model_state(path: str) -> str:
    known = path == "oracle" or (Path(path) / "config.json").is_file()
    return "ok" if known else "problem"


def _ask_torch() -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"error": "torch did not start within 120 s"}
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr.strip().splitlines() or ["torch did not start"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _show(findings: Iterable[Finding]) -> None:
    mark = {"ok": "+", "absent": "-", "problem": "!"}
    for finding in findings:
        print(f"{mark[finding.state]} {finding.name:14} {finding.found}")
        print(f"  {'':14} {finding.effect}")
    if any(finding.state == "problem" for finding in findings):
        print("\nLines with ! keep the server from working.")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _first_line(path: str) -> str:
    return next(iter(_lines(path)), "")
