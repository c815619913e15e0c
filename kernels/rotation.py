"""A random rotation of the residual stream: the same model in other numbers, which lie on no grid any more.

RMSNorm without its weight commutes with an orthogonal matrix, so after each norm's weight is folded into the products
that read it, the whole stream may be turned: what writes to it (embeddings, the output and down projections) is
rotated on its outputs, what reads it on its inputs. (Ashkboos et al., "SliceGPT", 2024, section 3.)
"""

from __future__ import annotations

import torch


def random_orthogonal(size: int, seed: int) -> torch.Tensor:
    """float64 [size, size], orthogonal, uniform over all such (Mezzadri, "How to generate random matrices from the
    classical compact groups", 2007)."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def rotate_inputs(weight: torch.Tensor, rotation: torch.Tensor, norm: torch.Tensor | None = None) -> torch.Tensor:
    """What reads the stream: weight [num_out, hidden] -> of the same type, for a stream x @ rotation.

    `norm` [hidden]: the weight of the norm before it, folded in first. Computed in the rotation's type.
    """
    _fits(weight.shape[-1], rotation)
    wide = weight.to(rotation.dtype)
    if norm is not None:
        wide = wide * norm.to(rotation.dtype)
    return (wide @ rotation).to(weight.dtype)


def rotate_outputs(weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """What writes to the stream: a matrix [hidden, num_in], or its bias [hidden]."""
    _fits(weight.shape[0], rotation)
    return (rotation.T @ weight.to(rotation.dtype)).to(weight.dtype)


def _fits(hidden: int, rotation: torch.Tensor) -> None:
    if rotation.shape != (hidden, hidden):
        raise ValueError(f"rotation is {list(rotation.shape)}; the stream has {hidden} dimensions")
