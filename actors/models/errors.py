"""Errors of getting and loading models, beside those of the runtime's tree.

ModelError
├── UnsupportedModel    model.unsupported    a sound file of a kind that this version does not read
├── PullFailed          model.pull           a model could not be fetched
└── NoSuchAdapter       model.no_adapter     no adapter of that name is loaded
"""

from __future__ import annotations

from ...runtime.errors import ModelError


class UnsupportedModel(ModelError):
    code = "model.unsupported"


class PullFailed(ModelError):
    code = "model.pull"


class NoSuchAdapter(ModelError):
    code = "model.no_adapter"
    default_hint = "load it first, or send the request without an adapter"
