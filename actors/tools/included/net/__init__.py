"""HTTP for tools: what a model names is fetched only from public addresses, within bounds of size and time."""
