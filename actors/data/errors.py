"""Errors of training data.

DataError               data
├── NoSuchData          data.none       no file or data set of that name
├── UnknownFormat       data.format     a file of a kind that is not read here
├── BadRecord           data.record     a record that fits no format, or that a model cannot be trained on
├── NoSpans             data.template   a chat template does not let the assistant's part be found
└── DataFailed          data.failed     tokenizing broke off: a process died, a disk is full
"""

from __future__ import annotations

from ...runtime.errors import CallboardError


class DataError(CallboardError):
    code = "data"


class NoSuchData(DataError):
    code = "data.none"


class UnknownFormat(DataError):
    code = "data.format"
    default_hint = "docs/data.md shows each format with an example"


class BadRecord(DataError):
    code = "data.record"
    default_hint = "`callboard data check` lists all such records; --skip-bad leaves them out and counts them"


class NoSpans(DataError):
    code = "data.template"
    default_hint = "choose another template: --template chatml, or a model that has one with {% generation %} blocks"


class DataFailed(DataError):
    code = "data.failed"


class Unfit(ValueError):
    """Why a record cannot be used: the reason alone; who reads the file adds its name and the line."""
