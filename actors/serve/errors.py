"""Errors of serving, beside those of the runtime's tree.

ModelError
├── Overloaded         serve.overloaded        the queue is full; nothing was taken
├── ReplicaLost        serve.replica_lost      what computes died too often during this request
├── ReplicaChanged     serve.replica_changed   a step builds on the cache of a replica that is no more
├── UnknownSequence    serve.unknown_sequence  a step goes on with a sequence that the replica does not hold
├── GrammarFailed      serve.grammar           a grammar came to where the model has no token that it allows
└── NothingToDraw      serve.nothing_to_draw   bias and grammar leave no token, or the model's numbers are not finite
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
    default_hint = "ask the replica what it is (`serve.ask_replica`) and send its sequences from their start"


class UnknownSequence(ModelError):
    code = "serve.unknown_sequence"
    default_hint = "send it from its start"


class GrammarFailed(ModelError):
    code = "serve.grammar"


class NothingToDraw(ModelError):
    code = "serve.nothing_to_draw"
