"""The protocols' messages, and the modules that are generated from them: see `regenerate`."""
