"""Where a model computes, and in which 16-bit type: what a card can do, and what of it is used."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.gpu import launch
from ...runtime.errors import ConfigError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Card:
    """What is known of an NVIDIA card before anything runs on it."""

    name: str
    capability: tuple[int, int]

    @property
    def has_bfloat16(self) -> bool:
        """Cards before compute capability 8.0, the 20 series among them, have neither it nor a current Triton: they
        compute in float16, by torch's own kernels."""
        return not launch.too_old(self.name, self.capability)


def compute_device(name: str) -> torch.device:
    """`name`: "cpu", "cuda", "cuda:1" and so on, or "" for the first card where there is one, else the CPU.

    ConfigError where it names what is not there.
    """
    num_cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return pick_device(name, num_cards)


def pick_device(name: str, num_cards: int) -> torch.device:
    """`compute_device` on a machine with so many cards."""
    if name == "":
        return torch.device("cuda", 0) if num_cards else CPU
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise ConfigError(f"there is no device '{name}'", hint="choose cpu, cuda, or one card as in cuda:1")
    if kind == "cpu":
        return CPU
    if not num_cards:
        raise ConfigError(
            "the device is to be cuda, but torch finds no card here",
            hint="`callboard doctor` says what it finds; without `device`, the CPU computes",
        )
    if int(index or 0) >= num_cards:
        raise ConfigError(f"there is no card {index}: torch finds {num_cards}", hint="they are counted from cuda:0")
    return torch.device("cuda", int(index or 0))


def card_of(device: torch.device) -> Card | None:
    """The card that a device is; None for a CPU."""
    if device.type != "cuda":
        return None
    return Card(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def half_type(card: Card | None) -> str:
    """The 16-bit type that is computed in there."""
    return "bfloat16" if card is None or card.has_bfloat16 else "float16"


def check_type(name: str, card: Card | None) -> None:
    """ConfigError where a device does not compute in a type, by its name."""
    if name == "bfloat16" and half_type(card) != name and card is not None:
        raise ConfigError(
            f"{card.name} has compute capability {card.capability[0]}.{card.capability[1]} and no bfloat16",
            hint='leave `dtype` out, or set it to "float16"',
        )
    if name == "float16" and card is None:
        raise ConfigError("float16 is computed in on cards only", hint='choose "bfloat16" or "float32"')


def slower_because(device: torch.device) -> str:
    """Why torch's own kernels compute on a card instead of ours; empty where ours do, and on a CPU."""
    return launch.unavailable(device) if device.type == "cuda" else ""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a card."""
    return torch.cuda.mem_get_info(device)[0]
