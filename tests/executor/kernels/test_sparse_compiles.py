"""The kernel builds for sm_90 at its real sizes, without a GPU: no spills, shared memory enough."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

SHARED = 227 * 1024
"""Bytes that one program of a Hopper GPU may have."""

PROGRAM = r"""
import json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triptych.executor.kernels import sparse_prefill as module

KERNEL = module._sparse_prefill
TOOL = triton.__path__[0] + "/backends/nvidia/bin/cuobjdump"
FIXED = {"GROUP": 7, "MASK_GROUP": 7, "SEQUENCES": 8, "PRECISION": "tf32"}
INT32 = ("table", "row_starts", "ends", "counts", "indices")
UNALIGNED = ("num_sequences", "s_block", "s_token", "s_head", "table_row", "counts_head",
             "indices_head", "indices_tile")


def build(tile_q, tile_k, head_dim, block, dtype, stored):
    launch = module.launch_of(tile_q, tile_k, head_dim, stored != dtype)
    constants = FIXED | {
        "HEAD_DIM": head_dim, "WIDTH": triton.next_power_of_2(head_dim), "TILE_Q": tile_q,
        "TILE_K": tile_k, "BLOCK": block, "STEP": launch.pop("STEP"),
        "LAST": triton.next_power_of_2(tile_q // tile_k + 2), "QUANTISED": stored != dtype,
    }
    pointers = {"query": dtype, "out": dtype, "keys": stored, "values": stored,
                "key_scales": "fp32", "value_scales": "fp32"} | dict.fromkeys(INT32, "i32")
    signature, aligned = {}, {}
    for index, name in enumerate(KERNEL.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        if name in pointers or signature[name] == "i32" and name not in UNALIGNED:
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=KERNEL, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = subprocess.run([TOOL, "--dump-resource-usage", file.name], check=True,
                              capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    ptx = made.asm["ptx"]
    return usage | {"shared": made.metadata.shared, "products": ptx.count("wgmma.mma_async"),
                    "copies": ptx.count("cp.async.c")}


print(json.dumps([build(*case) for case in json.loads(sys.argv[1])]))
"""

CASES = [
    (128, 128, 128, 16, "bf16", "bf16"),
    (64, 64, 128, 16, "bf16", "bf16"),
    (128, 128, 128, 16, "bf16", "i8"),
    (128, 128, 80, 16, "bf16", "bf16"),
]
"""Tiles of queries and keys, head_dim, block_size, dtypes of the query and of the store."""


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton for this platform")
def test_real_sizes_build_without_spills():
    environment = {name: one for name, one in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for case, usage in zip(CASES, json.loads(done.stdout), strict=True):
        assert usage["STACK"] == usage["LOCAL"] == 0, (case, usage)
        assert usage["shared"] <= SHARED, (case, usage)
        assert usage["products"] > 0, (case, usage)
        assert usage["copies"] > 0, (case, usage)
