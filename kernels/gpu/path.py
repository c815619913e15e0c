"""The Triton path: what `ops.Path` asks for, gathered from the files beside this one.

Products of plain matrices are cuBLAS's.
"""

from __future__ import annotations

from ..plain import linear
from .gate import gelu_mul, silu_mul
from .logits import mask_tokens, penalize
from .logprobs import token_logprobs
from .lora import lora, lora_multi
from .norms import add_rms_norm, rms_norm
from .paged_attention import paged_attention
from .peaks import greedy
from .rotary import rotary
from .sampling import sample
from .write_kv import rotary_write, write_kv

__all__ = [
    "add_rms_norm",
    "gelu_mul",
    "greedy",
    "linear",
    "lora",
    "lora_multi",
    "mask_tokens",
    "paged_attention",
    "penalize",
    "rms_norm",
    "rotary",
    "rotary_write",
    "sample",
    "silu_mul",
    "token_logprobs",
    "write_kv",
]
