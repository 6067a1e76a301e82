"""The attention kernels at the sizes of real models, compiled for Hopper without a GPU.

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
POINTERS = {
    "key_scales": "fp32", "value_scales": "fp32", "table": "i32", "ends": "i32", "skips": "i32",
    "stats": "fp32", "partial": "fp32", "members": "i32", "group_starts": "i32",
    "prefix_ends": "i32", "tiles": "i32", "row_starts": "i32", "lows": "i32", "highs": "i32",
}  # fmt: skip
ODD = {"window", "splits", "least", "slots", "offset", "shared"}
"""Numbers that are not known to divide by 16."""


def compiled(kernel, warps: int, stages: int, types: dict[str, str], **constants):
    """(registers, bytes spilled, shared bytes) of one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: f"*{kind}" for name, kind in (POINTERS | types).items()} | {"factor": "fp32"}
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else kinds.get(name, "i32")
        if name not in constants and name != "factor" and name not in ODD:
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    local = int(re.search(r"LOCAL:(\d+)", usage)[1])
    return registers, stack + local, built.metadata.shared, built.asm


def paged(kernel, rows: int, kv: str, types: dict[str, str], **constants):
    """``compiled`` for seven heads of 128 that share keys."""
    import torch
    import triton.language as tl

    from triptych.executor.kernels.online_softmax import tiling

    dtype = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn, "i8": torch.int8}[kv]
    step, warps, stages = tiling(dtype, 128, rows)
    constants |= {
        "GROUP": 7, "ROWS": rows, "HEAD_DIM": 128, "WIDTH": 128, "BLOCK_SIZE": 16, "STEP": step,
        "DOT": tl.bfloat16,
    }  # fmt: skip
    if kv == "bf16":
        constants |= {"key_scales": None, "value_scales": None}
    types |= {"query": "bf16", "keys": kv, "values": kv, "out": "bf16"}
    return compiled(kernel, warps, stages, types, **constants)


def report() -> dict[str, tuple[int, int, int]]:
    """What each kernel takes."""
    import triton.language as tl

    from triptych.executor.kernels.cascade import prefix_part
    from triptych.executor.kernels.decode import decode_part, merge_parts
    from triptych.executor.kernels.prefill import prefill_tile
    from triptych.executor.kernels.varlen import varlen_tile

    found = {}
    whole = {"skips": None, "stats": None, "HEADS": 28, "IS_WHOLE": True}
    found["decode"] = paged(decode_part, 16, "bf16", {"target": "bf16"}, **whole)
    split = {"skips": None, "HEADS": 28, "IS_WHOLE": False}
    for kv in ("bf16", "fp8e4nv", "i8"):
        found[f"split {kv}"] = paged(decode_part, 16, kv, {"target": "fp32"}, **split)
    for kv in ("bf16", "fp8e4nv"):
        found[f"prefill {kv}"] = paged(prefill_tile, 128, kv, {}, IS_WINDOWED=False)
    found["prefill window"] = paged(prefill_tile, 128, "bf16", {}, IS_WINDOWED=True)
    found["prefill 64"] = paged(prefill_tile, 64, "bf16", {}, IS_WINDOWED=False)
    found["prefix"] = paged(prefix_part, 128, "bf16", {}, HEADS=28)
    found["prefix fp8"] = paged(prefix_part, 128, "fp8e4nv", {}, HEADS=28)
    found["merge"] = compiled(
        merge_parts, 4, 3, {"out": "bf16"},
        skips=None, HEADS=28, HEAD_DIM=128, WIDTH=128, CHUNK=16,
    )  # fmt: skip
    vision = dict.fromkeys(("query", "keys", "values", "out"), "bf16")
    for rows, warps in ((64, 4), (128, 8)):
        found[f"varlen {rows}"] = compiled(
            varlen_tile, warps, 3, vision,
            HEAD_DIM=80, MAIN=64, REST=16, ROWS=rows, STEP=64, DOT=tl.bfloat16,
        )  # fmt: skip
    return found


def test_kernels_fit_a_hopper_processor():
    pytest.importorskip("triton", reason="no Triton for this platform")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 13
    for name, (registers, spilled, shared) in found.items():
        assert spilled == 0, f"{name} spills"
        assert shared <= SHARED_BYTES, f"{name} takes {shared} bytes of shared memory"
        assert registers <= 255


if __name__ == "__main__":
    print(json.dumps({name: usage[:3] for name, usage in report().items()}))
