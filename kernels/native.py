"""The native CPU kernels: C++ sources beside this file, compiled once for the processor they run on.

There they read each weight once, keep sums in registers and run a whole forward pass in threads of their own, where
torch would dispatch some four hundred small operations. They need Linux, a C++ compiler, and a processor with AVX-512
VNNI (Intel since Ice Lake, AMD since Zen 4); where one of these is missing `unavailable()` says so and the torch path
computes instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .cache import cache_folder

SOURCES = Path(__file__).parent / "native"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
# The unit for tiles (AMX), with which products with INT8 keep 16 bits of their inputs, and up to so many of these.
TILES = frozenset(("amx_tile", "amx_int8", "amx_bf16"))
MOST_WIDE_INPUTS = 1 << 16
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
COMPILE_TIMEOUT_S = 300.0


class CWeight(ctypes.Structure):
    """`Weight` of native/weights.h."""

    _fields_ = (
        ("format", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
    )


class CCache(ctypes.Structure):
    """`KVCache` of native/kv_cache.h."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
    )


class CLora(ctypes.Structure):
    """`LoraTarget` of native/decoder.cpp."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class CLayer(ctypes.Structure):
    """`Layer` of native/decoder.cpp."""

    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("qkv", CWeight),
        ("o", CWeight),
        ("gate_up", CWeight),
        ("down", CWeight),
        ("window", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("cache", CCache),
        ("lora", ctypes.c_void_p * 4),
    )


class CModel(ctypes.Structure):
    """`Model` of native/decoder.cpp."""

    _fields_ = (
        ("num_layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("intermediate", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("kv_format", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("embedding", ctypes.c_void_p),
        ("layers", ctypes.c_void_p),
    )


class CBatch(ctypes.Structure):
    """`Batch` of native/decoder.cpp."""

    _fields_ = (
        ("num_tokens", ctypes.c_int32),
        ("num_seqs", ctypes.c_int32),
        ("table_width", ctypes.c_int32),
        ("num_adapters", ctypes.c_int32),
        ("token_ids", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("query_starts", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("adapters", ctypes.c_void_p),
    )


class NativeUnavailable(RuntimeError):
    """The native kernels cannot run here; the message says why."""


def unavailable() -> str:
    """Why the native kernels cannot run here; empty where they can. Compiles them if that was not done before."""
    try:
        kernels()
    except NativeUnavailable as error:
        return str(error)
    return ""


def missing() -> str:
    """What the native kernels lack here, as far as that can be told without compiling them; empty where nothing."""
    if os.environ.get("CALLBOARD_NATIVE", "1") == "0":
        return "CALLBOARD_NATIVE=0 turns them off"
    if sys.platform != "linux":
        return "they run on Linux only"
    flags = _cpu_flags()
    if lacking := [flag for flag in NEEDED if flag not in flags]:
        return f"this processor has no {', '.join(lacking)}"
    return "" if _compiler() else "there is no C++ compiler (Debian: apt-get install g++)"


def int8_input_bits(num_in: int) -> int:
    """How many bits of their inputs products with INT8 keep here: 16 of each row, or 8 of each 32 of a row."""
    return 16 if _has_tiles() and num_in <= MOST_WIDE_INPUTS else 8


@functools.cache
def _has_tiles() -> bool:
    return sys.platform == "linux" and _cpu_flags() >= TILES


@functools.cache
def kernels() -> ctypes.CDLL:
    """The compiled kernels of inference. Raises NativeUnavailable."""
    loaded = load("decoder.cpp")
    _declare(loaded)
    return loaded


def load(source: str) -> ctypes.CDLL:
    """A file of native/, compiled for this processor if that was not done before. Raises NativeUnavailable."""
    if why := missing():
        raise NativeUnavailable(why)
    return ctypes.CDLL(str(_compiled(SOURCES / source, _cpu_flags())))


def _declare(loaded: ctypes.CDLL) -> None:
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    signatures: dict[str, tuple[type | None, tuple[type, ...]]] = {
        "cb_engine_new": (pointer, (int32,)),
        "cb_engine_free": (None, (pointer,)),
        "cb_int8_input_bits": (int32, (int32,)),
        "cb_weight_bytes": (int64, (int32, int32, int32)),
        "cb_pack": (None, (int32, int32, int32, pointer, pointer, int32, pointer)),
        "cb_pack_codes": (None, (int32, int32, int32, pointer, pointer, pointer, pointer, int32, pointer)),
        "cb_unpack": (None, (pointer, pointer, int32, pointer)),
        "cb_linear": (None, (pointer, pointer, pointer, int32, pointer, int64, int32)),
        "cb_likeliest": (None, (pointer, pointer, pointer, int32, pointer)),
        "cb_forward": (None, (pointer, pointer, pointer, pointer)),
        "cb_greedy": (None, (pointer, int32, int64, pointer)),
        "cb_sample": (None, (pointer, pointer, int32, int64, *(pointer,) * 6)),
        "cb_token_logprobs": (None, (pointer, pointer, int32, int64, pointer, int32, *(pointer,) * 3)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments


def _compiled(main: Path, flags: frozenset[str]) -> Path:
    """The library's file, from the cache folder or made now: by one of those that need it at once, for the others."""
    compiler = _compiler()
    assert compiler is not None, "`missing` looked for one"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join((version, *FLAGS, *sorted(flags))).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    folder = cache_folder("native")
    target = folder / f"{main.stem}-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_with(main), tempfile.TemporaryDirectory(dir=folder, prefix=".compiling-") as temporary:
            if target.exists():
                return target
            output = Path(temporary) / target.name
            command = [compiler, *FLAGS, "-o", str(output), str(main)]
            made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S)
            if made.returncode != 0:
                first = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[:200])
                raise NativeUnavailable(f"{compiler} does not compile them: {first}")
            os.replace(output, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"they could not be compiled: {error}") from error
    return target


@contextlib.contextmanager
def _alone_with(source: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks; elsewhere several may do the same work."""
    import fcntl

    descriptor = os.open(source, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
