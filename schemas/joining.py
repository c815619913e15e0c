"""How a user of the bus is made for somebody who holds no key of the account: a machine that joins, or a process that
a joined node starts. Only public keys travel; who asks keeps the seed."""

from __future__ import annotations

from typing import Literal

from .base import Message, Request


class Signed(Message, frozen=True, tag="creds.signed"):
    """`token` is the JWT that makes the asker's key a user."""

    token: str


class Join(Request[Signed], frozen=True, tag="creds.join"):
    """On `join.<token>`, which only the bearer of that join token may publish on: make me a user called `name`."""

    name: str
    key: str
    host: str = ""


class Mint(Request[Signed], frozen=True, tag="creds.mint"):
    """On `mint.<inbox>`, which only one node may publish on: make a user for the process `name` that I start.

    `asks`: the actors that it may ask as a tool."""

    name: str
    key: str
    role: Literal["node", "tool"] = "node"
    asks: tuple[str, ...] = ()
