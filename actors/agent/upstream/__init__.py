"""Models behind HTTP: any endpoint that speaks the API of OpenAI or of Anthropic, as an actor that answers `Generate`."""
