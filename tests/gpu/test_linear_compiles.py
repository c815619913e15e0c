"""The kernels of linear layers compile for each generation of cards, on a machine that has none.

The interpreter takes more than the compiler does, and tells nothing of the machine code. So a process of its own, in
which Triton compiles, makes each kernel for two generations; and of the kernels for few rows it counts how often
values move between threads, as their layout is chosen so that they do once, at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
POINTERS = (
    "scales",
    "offsets",
    "nested",
    "table",
    "values",
    "offset",
    "bias",
    "x_scales",
    "codes",
    "words",
    "x",
    "out",
)


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile(capability: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", __file__, capability]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    assert made.stdout.splitlines()[-1] == "compiled"


def main(capability: int) -> None:
    import types

    if "callboard" not in sys.modules:
        package = types.ModuleType("callboard")
        package.__path__ = [str(ROOT)]
        sys.modules["callboard"] = package

    from callboard.kernels.gpu import eight_bits, four_bits, split

    four = {"x": "*bf16", "words": "*i32", "out": "*bf16", "bias": "*bf16"}
    last = {"LAST": four_bits.WORDS_LAST}
    int4 = {"scales": "*fp16", "offsets": "*fp16"} | four, {"FORMAT": 0, "KIND": 1, "CHUNK": 16, "GROUP_WORDS": 16}
    nf4_types = {"scales": "*u8", "nested": "*fp32", "table": "*fp32", "values": "*fp32", "offset": "*fp32"} | four
    nf4 = nf4_types, {"FORMAT": 1, "KIND": 1, "CHUNK": 8, "GROUP_WORDS": 8}
    for types_of, constants in (int4, nf4):
        few = constants | last | {"TOKENS": 2, "OUTPUTS": 2, "WORDS": 512, "SPLITS": 1}
        made = compiled(four_bits._few_rows, types_of, few, capability, num_stages=1)
        expect(made.count("ttg.convert_layout") <= 1, "four bits, few rows: values move between threads within a step")
        many = constants | last | {"TOKENS": 16, "OUTPUTS": 64, "WORDS": 16, "SPLITS": 2}
        compiled(four_bits._many_rows, types_of, many, capability, num_stages=3)
        compiled(four_bits._dense, types_of, constants | {"OUTPUTS": 16, "WORDS": 64}, capability, num_stages=1)
    kinds = [("*i8", "*i8", True), ("*bf16", "*i8", False)]
    if capability >= 89:
        kinds.append(("*fp8e4nv", "*fp8e4nv", False))
    for inputs, codes, whole in kinds:
        types_of = {"x": inputs, "codes": codes, "scales": "*fp32", "bias": "*bf16", "out": "*bf16"}
        if inputs != "*bf16":
            types_of["x_scales"] = "*fp32"
        few = {"WHOLE": whole, "TOKENS": 2, "OUTPUTS": 2, "INPUTS": 2048, "SPLITS": 1}
        made = compiled(eight_bits._few_rows, types_of, few, capability, num_stages=1)
        expect(made.count("ttg.convert_layout") <= 1, "eight bits, few rows: values move between threads within a step")
        many = few | {"TOKENS": 64, "OUTPUTS": 64, "INPUTS": 128}
        compiled(eight_bits._many_rows, types_of, many, capability, num_stages=3)
        if inputs != "*bf16":
            rounding = {"x": "*bf16", "codes": codes, "scales": "*fp32"}
            constants = {"LARGEST": 127.0, "WHOLE": whole, "BLOCK": 2048}
            compiled(eight_bits._quantize_rows, rounding, constants, capability, num_stages=1)
    compiled(split._add, {"sums": "*fp32", "bias": "*bf16", "out": "*bf16"}, {"BLOCK": 1024}, capability, num_stages=1)
    print("compiled")


def compiled(
    kernel: Any, types_of: dict[str, str], constants: Mapping[str, Any], capability: int, **options: int
) -> str:
    """The kernel's intermediate code. Pointers without a type are None, other arguments multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names: list[str] = kernel.arg_names
    constants = dict(constants) | {name: None for name in names if name in POINTERS and name not in types_of}
    signature = {name: "constexpr" if name in constants else types_of.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4} | options)
    return made.asm["ttgir"]


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(what)


if __name__ == "__main__":
    main(int(sys.argv[1]))
