"""What an expression may cost. Each limit is checked before the work is done, never after."""

MAX_LENGTH = 4000
"""Characters of an expression."""

MAX_DEPTH = 60
"""Brackets within brackets: far below what Python's own stack holds."""

MAX_DIGITS = 4000
"""Digits of a number as written; below CPython's own limit of 4300 for reading one."""

MAX_EXPONENT = 30_000
"""Of a number as written: 1e30000."""

MAX_BITS = 1 << 17
"""Of an exact number's numerator and of its denominator: about 39,000 digits."""

MAX_SHOWN_DIGITS = 10_000
"""An exact number with more is shown rounded."""

MAX_MAGNITUDE = 1 << 40
"""Binary exponent of an approximate number: what mpmath handles without slowing down."""

MAX_PRECISION = 1000
"""Digits that may be asked of an approximate number."""

MAX_SECONDS = 5.0
"""For the whole expression; looked at between operations, none of which takes long by the other limits."""
