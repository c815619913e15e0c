"""SQL over databases that the configuration names, read-only unless it says otherwise."""
