"""The kernels beside attention at the sizes of real models, compiled for Hopper without a GPU.

Run as a program it compiles and reports; the test runs it so, as its own process imports the same
kernels for the interpreter.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SHARED_BYTES = 227 * 1024
"""What one program may have of a Hopper processor's shared memory."""
SIZES = {"width", "size", "half", "inner", "length", "first", "vocab"}
"""Numbers that divide by 16 in a real model."""
STACK = {"angles": 32}
"""Bytes for the remainder of a division by pi, where an angle is beyond 100,000; not spilled."""
NARROW = {"merge best"}
"""Too little work for loads of 16 bytes."""
REGISTERS = {2: 255, 4: 255, 8: 255, 16: 128}
"""What a thread may have, by warps."""


def compiled(kernel, warps, types, **constants):
    """(registers, bytes spilled, shared bytes) of one kernel; integers are not named."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from triptych.executor.kernels.quantise import UNFUSED

    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        is_aligned = signature[name].startswith("*") or name.endswith("_stride")
        if is_aligned or name in SIZES:
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, **UNFUSED}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    return found["REG"], found["STACK"] + found["LOCAL"], built.metadata.shared, built.asm["ptx"]


def pointers(kind, *names, **others):
    """Types of arguments: pointers to ``kind``, and others."""
    return dict.fromkeys(names, f"*{kind}") | others


def layers():
    """Kernels of a layer, with their warps, types and constants."""
    from triptych.executor.kernels import norm, quantise, rotary, swiglu

    plain = pointers("bf16", "x", "residual", "weight", "out", eps="fp32")
    for width in (1280, 3584, 8192):
        block = 1 << (width - 1).bit_length()
        yield (
            f"norm {width}", norm.rms_norm_kernel, norm.warps(block), plain,
            {"HAS_RESIDUAL": True, "BLOCK": block},
        )  # fmt: skip
    yield (
        "gate", swiglu.silu_mul_kernel, 4, pointers("bf16", "gate_up", "out"), {"BLOCK": 1024}
    )  # fmt: skip
    angles = pointers("fp32", "cosines", "sines", "key_scales", "value_scales", slots="*i64")
    for kind, codes in ((0, "bf16"), (1, "i8"), (2, "u8")):
        types = angles | pointers("bf16", "qkv", "out") | pointers(codes, "keys", "values")
        yield (
            f"rotary {codes}", rotary.rotate_and_write_kernel, 2, types,
            {"KIND": kind, "HEADS": rotary.HEADS, "HALF": 64},
        )  # fmt: skip
    yield (
        "rotary in place", rotary.rotate_kernel, 2, angles | pointers("bf16", "qkv"),
        {"HEADS": rotary.HEADS, "HALF": 64},
    )  # fmt: skip
    yield (
        "angles", rotary.mrope_angles_kernel, 4,
        angles | pointers("i64", "positions", "axes", frequencies="*fp32"),
        {"ROWS": 8, "HALF": 64},
    )  # fmt: skip
    for kind, codes in ((1, "i8"), (2, "u8")):
        types = pointers("bf16", "x", "out", codes=f"*{codes}", scales="*fp32")
        sizes = {"KIND": kind, "ROWS": quantise.ROWS, "SIZE": 128}
        yield f"quantise {codes}", quantise.quantise_kernel, 4, types, sizes
        yield f"dequantise {codes}", quantise.dequantise_kernel, 4, types, sizes


def movers():
    """Kernels that copy."""
    from triptych.executor.kernels import blocks

    types = pointers("i64", "store", "staging", "index", "targets")
    for to_store in (False, True):
        yield (
            f"blocks {to_store}", blocks.copy_runs_kernel, 4, types,
            {"TO_STORE": to_store, "TILE": blocks.TILE},
        )  # fmt: skip
    rows = types | pointers("bf16", "rows", "out")
    yield "rows", blocks.gather_rows_kernel, 4, rows, {"TILE": blocks.TILE}


def samplers():
    """Kernels that draw, for a vocabulary of 152,064."""
    from triptych.executor.kernels import logprobs, sampling

    types = pointers("fp32", "logits", "peaks") | pointers("fp64", "params", "partial")
    types |= pointers("i32", "history", "places", "heads", tokens="*i64", sound="*i8")
    chunked = {"HAS_HISTORY": True, "CHUNK": sampling.CHUNK}
    padded = chunked | {"CHUNKS": 64}
    capacity = {"CAPACITY": sampling.CAPACITY}
    yield "peaks", sampling.peaks_kernel, 8, types, chunked
    yield "masses", sampling.masses_kernel, 8, types, padded
    yield "gather", sampling.gather_kernel, 8, types, padded | capacity
    whole = {"HAS_HISTORY": True, "CHUNKS": 64, "TILE": sampling.TILE}
    yield "draw", sampling.draw_kernel, 8, types, whole | capacity
    types |= pointers("fp64", "peaks", "sums") | pointers("fp32", "own", "values")
    types |= pointers("i32", "keys", "ids_in", ids_out="*i32")
    yield "chunk best", logprobs.chunk_best_kernel, 8, types, {"CHUNK": logprobs.CHUNK}
    types["ids_out"] = "*i64"
    yield (
        "merge best", logprobs.merge_best_kernel, 4, types, {"CHUNKS": 64, "CANDIDATES": 1024}
    )  # fmt: skip


def report():
    """What each kernel takes, and its machine code."""
    for name, kernel, warps, types, constants in (*layers(), *movers(), *samplers()):
        yield name, warps, *compiled(kernel, warps, types, **constants)


def test_kernels_fit_a_hopper_processor():
    pytest.importorskip("triton", reason="no Triton for this platform")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 22
    for name, warps, registers, spilled, shared, is_vector, flushes in found:
        assert spilled <= STACK.get(name, 0), name
        assert shared <= SHARED_BYTES, name
        assert registers <= REGISTERS[warps], name
        assert is_vector or name in NARROW, f"{name} reads and writes less than 16 bytes at once"
        assert not flushes, f"{name} loses small numbers"


if __name__ == "__main__":
    lines = [
        (*numbers, ".v4.b32" in ptx or ".v2.b64" in ptx, "mul.ftz" in ptx or "add.ftz" in ptx)
        for *numbers, ptx in report()
    ]
    sys.stdout.write(json.dumps(lines))
