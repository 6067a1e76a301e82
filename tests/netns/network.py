"""Several hosts on one machine: network namespaces, each with one link to a switch of their own.

    host 1 [eth0 10.77.0.1] ---- [port1]  switch (a bridge)  [port2] ---- [eth0 10.77.0.2] host 2

The switch is a namespace too: the machine's own network is not touched. Needs root and ``ip``.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

SUBNET = "10.77.0"


class Network:
    """Namespaces that exist while ``network`` is entered."""

    def __init__(self, stem: str, names: Sequence[str]) -> None:
        self._stem = stem
        self.names = tuple(names)

    def words(self, name: str) -> tuple[str, ...]:
        """What to put before a command that shall run on host ``name``."""
        return ("ip", "netns", "exec", self.space(name))

    def space(self, name: str) -> str:
        """The namespace of a host, or of the ``switch``."""
        return f"{self._stem}-{name}"

    def address(self, name: str) -> str:
        """The host's address."""
        return f"{SUBNET}.{self.names.index(name) + 1}"

    def shape(self, name: str, rate: str) -> None:
        """Bound the host's link, both ways, to a rate as ``tc`` spells it (``100mbit``)."""
        words = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "100ms")
        run(*self.words(name), "tc", "qdisc", "replace", "dev", "eth0", *words)
        run(*self.words("switch"), "tc", "qdisc", "replace", "dev", f"to-{name}", *words)

    def unshape(self, name: str) -> None:
        """Take the bound away."""
        run(*self.words(name), "tc", "qdisc", "del", "dev", "eth0", "root")
        run(*self.words("switch"), "tc", "qdisc", "del", "dev", f"to-{name}", "root")


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Make the hosts, each reachable from all others; afterwards nothing of them exists. Raises
    OSError or subprocess.CalledProcessError where this is not possible."""
    found = Network(f"tt{os.getpid()}", names)
    _sweep()
    with ExitStack() as stack:
        for name in ("switch", *names):
            run("ip", "netns", "add", found.space(name))
            stack.callback(_delete, found.space(name))
            run(*found.words(name), "ip", "link", "set", "lo", "up")
        switch = found.words("switch")
        run(*switch, "ip", "link", "add", "bridge", "type", "bridge")
        run(*switch, "ip", "link", "set", "bridge", "up")
        for name in names:
            ends = ("type", "veth", "peer", "name", "eth0", "netns", found.space(name))
            run(*switch, "ip", "link", "add", f"to-{name}", *ends)
            run(*switch, "ip", "link", "set", f"to-{name}", "master", "bridge", "up")
            inside = found.words(name)
            run(*inside, "ip", "address", "add", f"{found.address(name)}/24", "dev", "eth0")
            run(*inside, "ip", "link", "set", "eth0", "up")
        yield found


def run(*words: str) -> str:
    """Run a command; its output. Raises CalledProcessError, with what it said as a note."""
    try:
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
    return done.stdout


def why_not() -> str:
    """Why this machine cannot make such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(("one", "two")) as two:
            two.shape("one", "100mbit")
            run(*two.words("one"), "true")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error} {getattr(error, 'stderr', '')}".strip()
    return ""


def _sweep() -> None:
    """Remove what a run left behind that was killed with SIGKILL."""
    for line in run("ip", "netns", "list").splitlines():
        space = line.split()[0]
        if (mark := re.fullmatch(r"tt(\d+)-\w+", space)) and not os.path.exists(f"/proc/{mark[1]}"):
            _delete(space)


def _delete(space: str) -> None:
    """A namespace goes when its last process does; with it its links."""
    with suppress(subprocess.CalledProcessError):
        for pid in run("ip", "netns", "pids", space).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
    with suppress(subprocess.CalledProcessError):
        run("ip", "netns", "del", space)
