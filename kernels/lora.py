"""Which rows of a batch a low-rank adapter applies to; see `ops.lora`."""

from __future__ import annotations

from typing import TypeAlias

import torch

Rows: TypeAlias = slice | torch.Tensor
