"""Models behind HTTP: endpoints that speak the API of OpenAI or of Anthropic, as actors that answer `Generate`."""
