"""Errors of serving, beside those of the runtime's tree.

ModelError
├── Overloaded      serve.overloaded        the queue is full; nothing was taken
├── ReplicaLost     serve.replica_lost      what computes died too often during this request
└── ReplicaChanged  serve.replica_changed   a step for a replica's earlier life, whose cache is gone
"""

from __future__ import annotations

from ...runtime.errors import ModelError


class Overloaded(ModelError):
    code = "serve.overloaded"
    default_hint = "ask again in a moment; the engine's `max_waiting` sets how many may wait"


class ReplicaLost(ModelError):
    code = "serve.replica_lost"
    default_hint = "`callboard logs` says why the replica died"


class ReplicaChanged(ModelError):
    code = "serve.replica_changed"
    default_hint = "ask the replica what it is (`serve.ask_replica`), and start its sequences again"
