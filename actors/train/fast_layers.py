"""Layers of transformers' causal models computed by our ops: norms, gated MLPs, rotary positions, residual sums.

The modules stay, with their names and parameters, so that PEFT and saving find what they expect; only the forward pass
of the instances is ours. A layer is recognized by its parts, and one of each kind is tried: where ours and its own
differ by more than rounding on a random input, all of the kind are left as they are. Attention itself goes through
transformers' registry, as before.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...kernels import ops_training
from .adapters import outputs_of

# Families whose attention is LLaMA's: projections, norms of heads where there are some, rotary positions in halves.
ATTENTION = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
# How far two ways to compute one layer in float32 may be apart, relative to the size of what comes out.
_TOLERANCE = 1e-4
_TRIAL_TOKENS = 3

Forward = Callable[..., Any]


def use_fast_layers(model: nn.Module) -> tuple[str, ...]:
    """Put our forward passes into the layers that they fit; returns the names of those layers.

    Linear layers inside are those that are there when it is called, so PEFT may wrap them before or after. Draws
    nothing from the random state that training goes on with.
    """
    replaced: list[str] = []
    fits: dict[tuple[object, ...], bool] = {}
    for name, module in model.named_modules():
        fast = _forward_of(module)
        if fast is None or "forward" in vars(module):
            continue
        kind = _kind(module)
        if kind not in fits:
            fits[kind] = _is_the_same(module, fast)
        if fits[kind]:
            module.forward = types.MethodType(fast, module)
            replaced.append(name)
    return tuple(replaced)


def _kind(module: nn.Module) -> tuple[object, ...]:
    """The same for layers that compute the same of their parameters."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, (str, int, float, bool))}
    plain.pop("layer_idx", None)
    shapes = tuple((name, parameter.shape) for name, parameter in module.named_parameters())
    return type(module), tuple(sorted(plain.items())), shapes


def _forward_of(module: nn.Module) -> Forward | None:
    """Ours for a layer that looks as if it fitted."""
    parts = {name for name, _ in module.named_children()}
    if not parts and [name for name, _ in module.named_parameters()] == ["weight"]:
        return _norm_forward if hasattr(module, "variance_epsilon") else None
    if parts == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return _mlp_forward if type(module.get_submodule("act_fn")).__name__ in ("SiLU", "SiLUActivation") else None
    if _is_decoder_layer(module):
        return _decoder_layer_forward
    family = type(module).__name__.removesuffix("Attention")
    if family in ATTENTION and parts - {"q_norm", "k_norm"} == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return _attention_forward
    return None


def _is_decoder_layer(module: nn.Module) -> bool:
    family = type(module).__name__.removesuffix("DecoderLayer")
    parts = dict(module.named_children())
    norms = [parts.pop(name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    return family in ATTENTION and parts.keys() == {"self_attn", "mlp"} and all(map(_is_norm, norms))


def _is_norm(module: nn.Module | None) -> bool:
    return module is not None and _forward_of(module) is _norm_forward


def _is_the_same(module: nn.Module, fast: Forward) -> bool:
    """Whether both ways give the same on a few random tokens, but for rounding; tried on a copy in float32."""
    copied: Any = copy.deepcopy(module).float().eval()
    first = next(copied.parameters())
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(first.device)

    inputs: dict[str, Any] = {}
    if fast in (_attention_forward, _decoder_layer_forward):
        attention = copied if fast is _attention_forward else copied.self_attn
        angles = draw(1, _TRIAL_TOKENS, attention.head_dim // 2).repeat(1, 1, 2)
        inputs = {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None}
    width = len(first) if fast is _norm_forward else first.shape[1]
    x = draw(1, _TRIAL_TOKENS, width)
    with torch.no_grad():
        ours, own = (
            found[0] if isinstance(found, tuple) else found
            for found in (fast(copied, x, **inputs), copied(x, **inputs))
        )
    return bool((ours - own).norm() <= _TOLERANCE * own.norm())


def _norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if hidden_states.dtype != self.weight.dtype:  # its own rules of promotion
        return type(self).forward(self, hidden_states)
    return ops_training.rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _decoder_layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Sums of the residual stream are made by the norms that read them, and so are those of its gradients."""
    first, second = self.input_layernorm, self.post_attention_layernorm
    if args or hidden_states.dtype != first.weight.dtype or hidden_states.dtype != second.weight.dtype:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    normed, stream = ops_training.rms_norm_and_input(hidden_states, first.weight, first.variance_epsilon)
    attended, _ = self.self_attn(normed, **kwargs)
    normed, stream = ops_training.add_rms_norm(attended, stream, second.weight, second.variance_epsilon)
    return stream + self.mlp(normed)


def _mlp_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(ops_training.silu_mul(*outputs_of((self.gate_proj, self.up_proj), x)))


def _attention_forward(
    self: Any,
    hidden_states: torch.Tensor,  # [num_rows, length, hidden]
    position_embeddings: tuple[torch.Tensor, torch.Tensor],  # [num_rows or 1, length, head_dim], both halves alike
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    num_rows, length = hidden_states.shape[:2]
    heads = (num_rows, length, -1, self.head_dim)
    projected = outputs_of((self.q_proj, self.k_proj, self.v_proj), hidden_states)
    q, k, v = (values.view(heads) for values in projected)
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    if getattr(self, "use_rope", True):
        half = self.head_dim // 2
        cos, sin = (table[..., :half].expand(num_rows, length, half).flatten(0, 1) for table in position_embeddings)
        q, k = ops_training.rotary(q.flatten(0, 1), k.flatten(0, 1), cos, sin)
    q, k, v = (x.view(heads).transpose(1, 2) for x in (q, k, v))
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    dropout = self.attention_dropout if self.training else 0.0
    attended, weights = _interface(self)(
        self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, sliding_window=_window(self), **kwargs
    )
    return self.o_proj(attended.reshape(num_rows, length, -1).contiguous()), weights


def _interface(attention: Any) -> Forward:
    """The function that the model's configuration names; `eager` is in each family's own code."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation,
        eager,  # pyright: ignore[reportArgumentType]
    )


def _window(attention: Any) -> int | None:
    if type(attention).__name__ == "MistralAttention":
        return attention.config.sliding_window
    return getattr(attention, "sliding_window", None)
