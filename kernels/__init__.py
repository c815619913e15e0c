"""Numerics: one op, one signature, a plain-torch reference and a fast path by device.

`ops` is the one door. This package knows nothing of actors, messages or models; a wrong argument is a `ValueError`.
"""
