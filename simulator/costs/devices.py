"""Accelerators and links by name: published sizes and speeds, each with where it is published.

Knows numbers of data sheets. What software makes of them is measured elsewhere.
"""

from __future__ import annotations

import msgspec

GIB = 1 << 30


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator."""

    name: str
    memory_bytes: int
    """What a program sees of it, in whole GiB."""
    memory_bytes_per_s: float
    nvlink_bytes_per_s: float
    """One way."""
    power_w: float
    """Thermal design power."""
    source: str
    tables: str = ""
    """Folder of its kernel tables, and their version."""
    tables_version: str = ""
    encoder_like: Device | None = None
    """Whose table of encoder attention stands in where it has none."""
    comm_like: Device | None = None
    """Whose all-reduce stands in where it has none."""


H200 = Device(
    name="h200", memory_bytes=139 * GIB, memory_bytes_per_s=4.8e12, nvlink_bytes_per_s=450e9,
    power_w=700.0, source="NVIDIA H200 data sheet (SXM): 141 GB, 4.8 TB/s, NVLink 900 GB/s, 700 W",
    tables="h200_sxm", tables_version="0.24.0",
)  # fmt: skip
A100 = Device(
    name="a100", memory_bytes=79 * GIB, memory_bytes_per_s=2.039e12, nvlink_bytes_per_s=300e9,
    power_w=400.0, source="NVIDIA A100 80GB data sheet (SXM): 2,039 GB/s, NVLink 600 GB/s, 400 W",
    tables="a100_sxm", tables_version="0.14.0", encoder_like=H200, comm_like=H200,
)  # fmt: skip
H100 = Device(
    name="h100", memory_bytes=79 * GIB, memory_bytes_per_s=3.35e12, nvlink_bytes_per_s=450e9,
    power_w=700.0, source="NVIDIA H100 data sheet (SXM): 80 GB, 3.35 TB/s, NVLink 900 GB/s, 700 W",
)  # fmt: skip
DEVICES = {device.name: device for device in (H200, A100, H100)}


class LinkRate(msgspec.Struct, frozen=True):
    """A way between two devices: seconds before the first byte, then bytes per second, one way."""

    latency_s: float
    bytes_per_s: float
    source: str

    def seconds(self, num_bytes: float) -> float:
        """To move so many bytes over the idle link."""
        return self.latency_s + num_bytes / self.bytes_per_s


LINKS = {
    "nvlink-h200": LinkRate(
        10e-6, 450e9, "H200 data sheet: 900 GB/s both ways; latency: a launch and an ack (assumed)"
    ),
    "nvlink-a100": LinkRate(
        10e-6, 300e9, "A100 data sheet: 600 GB/s both ways; latency: a launch and an ack (assumed)"
    ),
    "pcie-5": LinkRate(
        15e-6, 63e9, "PCIe 5.0 x16: 32 GT/s, 128b/130b; latency with one host copy (assumed)"
    ),
    "pcie-4": LinkRate(
        15e-6, 31.5e9, "PCIe 4.0 x16: 16 GT/s, 128b/130b; latency with one host copy (assumed)"
    ),
    "rdma-400g": LinkRate(
        5e-6, 50e9, "ConnectX-7 data sheet: 400 Gb/s; a few microseconds for a one-sided read"
    ),
    "rdma-200g": LinkRate(
        5e-6, 25e9, "ConnectX-6 data sheet: 200 Gb/s; a few microseconds for a one-sided read"
    ),
    "tcp-100g": LinkRate(
        100e-6, 12.5e9, "100 GbE line rate; latency of kernel TCP within a data centre (assumed)"
    ),
    "tcp-25g": LinkRate(
        100e-6, 3.125e9, "25 GbE line rate; latency of kernel TCP within a data centre (assumed)"
    ),
}
"""Line rates: software reaches 80 to 95 % of them. Scale ``bytes_per_s`` by what you measured."""
