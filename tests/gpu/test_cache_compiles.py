"""The kernels of paged caches compile for each generation of cards, on a machine that has none: see
test_linear_compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHES = {
    "bf16": (0, "*bf16", "*bf16", "*bf16"),
    "int8": (1, "*i8", "*fp32", "*i8"),
    "int4": (2, "*u8", "*fp16", "*fp16"),
}
FLOATS = {"scale": "fp32", "softcap": "fp32"}


@pytest.mark.parametrize(
    ("capability", "cache", "head_dim"),
    [("80", "bf16", "64"), ("90", "int8", "64"), ("80", "int4", "128"), ("90", "int4", "80")],
)
def test_kernels_compile(capability: str, cache: str, head_dim: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", __file__, capability, cache, head_dim]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    assert made.stdout.splitlines()[-1] == "compiled"


def main(capability: int, cache: str, head_dim: int) -> None:
    import types

    if "callboard" not in sys.modules:
        package = types.ModuleType("callboard")
        package.__path__ = [str(ROOT)]
        sys.modules["callboard"] = package

    from callboard.kernels.gpu import paged_attention, write_kv

    format, codes, scales, minimums = CACHES[cache]
    width = 1 << (head_dim - 1).bit_length()
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "q_out_ptr", "out_ptr"), "*bf16")
    pointers |= {"cos_ptr": "*fp32", "sin_ptr": "*fp32", "slots_ptr": "*i64"}
    for side in "kv":
        pointers |= {f"{side}_codes_ptr": codes, f"{side}_scale_ptr": scales, f"{side}_min_ptr": minimums}
    stages = head_dim.bit_length() - 1 if head_dim == width and cache == "int4" else 0
    shape = {"FORMAT": format, "HEADS": 2048 // width, "WIDTH": width, "Q_WIDTH": width, "STAGES": stages}
    compile_for(write_kv._turn_and_write, pointers, shape | {"ROTARY": True, "INTERLEAVED": False}, capability, 1)

    lists = {"tables_ptr": "*i32", "seq_lens_ptr": "*i32", "query_starts_ptr": "*i32"}
    parts = {"part_ptr": "*fp32", "lse_ptr": "*fp32", "sinks_ptr": "*bf16", "k_ptr": codes, "v_ptr": codes}
    flags = {
        "FORMAT": format, "BLOCK_SIZE": 16, "HEAD_DIM": head_dim, "GROUP": 4, "CAPPED": False, "HAS_SINKS": False,
        "EXACT": False, "WIDTH": width // 2 if cache == "int4" else width,
    }  # fmt: skip
    few = flags | {"ROWS": 16, "BLOCK": 64, "COMPACT": False}
    compile_for(paged_attention._attend_few, pointers | lists | parts | FLOATS, few, capability, 3)
    many = flags | {"ROWS": 128, "BLOCK": 64}
    compile_for(paged_attention._attend_many, pointers | lists | parts | FLOATS, many, capability, 2)
    print("compiled")


def compile_for(
    kernel: object, types_of: dict[str, str], constants: Mapping[str, object], capability: int, stages: int
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names: list[str] = kernel.arg_names  # pyright: ignore[reportAttributeAccessIssue]
    signature = {name: "constexpr" if name in constants else types_of.get(name, "i32") for name in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")},
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "num_stages": stages}
    )
    if made.metadata.shared > 99 << 10:  # the least that cards since 8.0 have
        raise SystemExit(f"{made.metadata.shared} bytes of shared memory")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
