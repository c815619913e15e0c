"""Training ops natively on a CPU: native/training.cpp as autograd functions, for float32 and bfloat16.

Between torch's products stand norms, positions, gates and attention, which torch does in many passes over memory and,
in bfloat16, slowly. Here each is one pass in each direction, in the threads that torch computes with (native/team.h).
Differentiable once. `unavailable` says where they cannot run.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import native

TYPES = (torch.float32, torch.bfloat16)


class CTeam(ctypes.Structure):
    """`Team` of native/team.h."""

    _fields_ = (("parallel", ctypes.c_void_p), ("num_threads", ctypes.c_int32), ("reserved", ctypes.c_int32))


class CStrided(ctypes.Structure):
    """`Strided` of native/varlen.h."""

    _fields_ = (("data", ctypes.c_void_p), ("token", ctypes.c_int64), ("head", ctypes.c_int64))


class CTurned(ctypes.Structure):
    """`Turned` of native/training.cpp."""

    _fields_ = (("x", CStrided), ("out", ctypes.c_void_p), ("heads", ctypes.c_int64))


class CRotary(ctypes.Structure):
    """`Rotary` of native/training.cpp."""

    _fields_ = (
        ("q", CTurned),
        ("k", CTurned),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("cos_stride", "sin_stride", "tokens")),
        *((name, ctypes.c_int32) for name in ("head_dim", "pairs", "interleaved", "table_is_bf16", "is_bf16")),
        ("sign", ctypes.c_float),
    )


class CGate(ctypes.Structure):
    """`Gate` of native/training.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gate", "up", "grad", "out", "grad_gate", "grad_up")),
        *((name, ctypes.c_int64) for name in ("rows", "n", "gate_stride", "up_stride")),
    )


def unavailable() -> str:
    """Why these ops cannot run here; empty where they can. Compiles them if that was not done before."""
    try:
        _library()
    except native.NativeUnavailable as error:
        return str(error)
    return ""


def takes(*tensors: torch.Tensor) -> bool:
    """Whether tensors like these are computed here: on the CPU, of one type that the kernels know."""
    dtype = tensors[0].dtype
    return dtype in TYPES and all(x.device.type == "cpu" and x.dtype == dtype for x in tensors) and not unavailable()


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    """The compiled kernels, and the address of the entry into torch's threads."""
    library = native.load("training.cpp")
    pointer, int32, int64, float32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
    signatures: dict[str, tuple[type | None, tuple[type, ...]]] = {
        "cbt_norm": (None, (pointer, int32, *(pointer,) * 6, int64, int64, float32)),
        "cbt_norm_blocks": (int64, (int64,)),
        "cbt_norm_gradient": (None, (pointer, int32, *(pointer,) * 8, int64, int64)),
        "cbt_gate": (None, (pointer, int32, pointer)),
        "cbt_rotary": (None, (pointer, pointer)),
        "cbt_losses": (None, (pointer, int32, pointer, int64, pointer, pointer, *(int64,) * 3, float32, int32)),
        "cbt_use_tiles": (int32, (int32,)),
        "cbt_lora_pack": (None, (int32, pointer, int32, int32, int32, pointer)),
        "cbt_lora_narrow": (None, (pointer, pointer, int32)),
        "cbt_lora_widen": (None, (pointer, pointer, int32)),
        "cbt_lora_gradient": (None, (pointer, pointer, int32)),
        "cbt_varlen": (None, (pointer, pointer)),
        "cbt_varlen_gradient": (None, (pointer, pointer, int64)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.cbt_use_tiles(1)
    return library, _openmp_entry()


def use_tiles(wanted: bool) -> bool:
    """Have whole tiles of bfloat16 multiplied by AMX, or not; returns whether they are. At first they are where they
    can be."""
    return bool(_library()[0].cbt_use_tiles(int(wanted)))


def _openmp_entry() -> int:
    """The address of `GOMP_parallel` in the OpenMP runtime that torch brought into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/") and "omp" in line}
    found = [path for path in loaded if path.name.startswith(("libgomp", "libomp", "libiomp"))]
    of_torch = Path(torch.__file__).parent
    for path in sorted(found, key=lambda path: of_torch not in path.parents):
        entry = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if entry is not None:
            return ctypes.cast(entry, ctypes.c_void_p).value or 0
    raise native.NativeUnavailable("this build of torch computes without OpenMP")


def library() -> ctypes.CDLL:
    return _library()[0]


def call(name: str, *arguments: Any) -> None:
    """A function whose first argument is the team: the threads that torch computes with."""
    library, parallel = _library()
    team = CTeam(parallel, torch.get_num_threads())
    getattr(library, name)(ctypes.addressof(team), *arguments)


def is_bf16(x: torch.Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _pointer(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def strided(x: torch.Tensor) -> CStrided:
    """x [num_tokens, num_heads, head_dim] whose last dimension is contiguous."""
    return CStrided(x.data_ptr(), x.stride(0), x.stride(1))


def with_whole_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


# Norms


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `ops_training.rms_norm`."""
    normed, _ = _Norm.apply(x, None, weight, eps, False)
    return normed


def rms_norm_and_input(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.rms_norm_and_input`."""
    return _Norm.apply(x, None, weight, eps, True)  # pyright: ignore[reportReturnType]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.add_rms_norm`."""
    return _Norm.apply(x, residual, weight, eps, False)  # pyright: ignore[reportReturnType]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, keeps: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, weight = given.contiguous(), weight.contiguous()
        hidden = weight.shape[0]
        rows = x.numel() // hidden
        out, scale = torch.empty_like(x), torch.empty(rows)
        total = None if residual is None else torch.empty_like(x)
        added = None if residual is None else residual.contiguous()
        pointers = (_pointer(x), _pointer(added), _pointer(total), _pointer(weight), _pointer(out), _pointer(scale))
        call("cbt_norm", is_bf16(x), *pointers, rows, hidden, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if total is None else total, weight, scale)
        ctx.adds = residual is not None
        return out, given if keeps else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        grad, grad_total = grads
        x, weight, scale = ctx.saved_tensors
        if grad is None:  # only the sum was used
            return grad_total, grad_total if ctx.adds else None, None, None, None
        grad = grad.contiguous()
        grad_total = None if grad_total is None else grad_total.contiguous()
        rows, hidden = len(scale), weight.shape[0]
        grad_x = torch.empty_like(x)
        grad_weight = blocks = None
        if ctx.needs_input_grad[2]:
            grad_weight = torch.empty_like(weight)
            blocks = torch.empty(_library()[0].cbt_norm_blocks(rows), hidden)
        inputs = (_pointer(grad), _pointer(grad_total), _pointer(x), _pointer(weight), _pointer(scale))
        call(
            "cbt_norm_gradient", is_bf16(x), *inputs, *map(_pointer, (grad_x, blocks, grad_weight)), rows, hidden
        )  # fmt: skip
        return grad_x, grad_x if ctx.adds else None, grad_weight, None, None


# The gate


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See `ops_training.silu_mul`."""
    out = _Gate.apply(gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1]))
    assert isinstance(out, torch.Tensor)
    return out.view(gate.shape)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = with_whole_rows(gate), with_whole_rows(up)
        out = gate.new_empty(gate.shape)
        _gate(gate, up, None, out, None, None)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        gate, up = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_gate, grad_up = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
        _gate(gate, up, grad, None, grad_gate, grad_up)
        return grad_gate, grad_up


def _gate(
    gate: torch.Tensor,
    up: torch.Tensor,
    grad: torch.Tensor | None,
    out: torch.Tensor | None,
    grad_gate: torch.Tensor | None,
    grad_up: torch.Tensor | None,
) -> None:
    pointers = map(_pointer, (gate, up, grad, out, grad_gate, grad_up))
    task = CGate(*pointers, *gate.shape, gate.stride(0), up.stride(0))
    call("cbt_gate", is_bf16(gate), ctypes.addressof(task))


# Rotary positions


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.rotary`."""
    return _Rotary.apply(q, k, with_whole_rows(cos), with_whole_rows(sin), interleaved)  # pyright: ignore


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(q, k, cos, sin, interleaved, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        cos, sin = ctx.saved_tensors
        grad_q, grad_k = grads
        return *_turn(grad_q, grad_k, cos, sin, ctx.interleaved, -1.0), None, None, None


def _turn(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, sign: float
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = with_whole_rows(q), with_whole_rows(k)
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    task = CRotary(
        CTurned(strided(q), q_out.data_ptr(), q.shape[1]), CTurned(strided(k), k_out.data_ptr(), k.shape[1]),
        cos.data_ptr(), sin.data_ptr(), cos.stride(0), sin.stride(0), len(q),
        q.shape[2], cos.shape[1], int(interleaved), is_bf16(cos), is_bf16(q), sign,
    )  # fmt: skip
    call("cbt_rotary", ctypes.addressof(task))
    return q_out, k_out


# The loss


def row_losses(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int, label_smoothing: float, with_gradient: bool
) -> torch.Tensor:
    """See `cross_entropy.RowLosses`; logits [num_rows, vocab] with rows that are contiguous."""
    losses, targets = torch.empty(len(logits)), targets.contiguous()
    call(
        "cbt_losses", is_bf16(logits), logits.data_ptr(), logits.stride(0), targets.data_ptr(), losses.data_ptr(),
        *logits.shape, ignore_index, label_smoothing, int(with_gradient),
    )  # fmt: skip
    return losses
