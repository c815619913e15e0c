"""The web: fetch a page, search, and arXiv."""
