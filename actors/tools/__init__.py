"""Tools: typed, multimodal, remote. `from callboard import tool` is the way in; see docs/tools.md."""
