"""Every message that crosses the bus. This package imports nothing of ours."""
