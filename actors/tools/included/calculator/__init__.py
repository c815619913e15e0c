"""A calculator: a parser of its own over exact numbers, with units. `calculate` is the pure part, `tool` the tool."""
