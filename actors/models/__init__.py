"""Models: where they come from and lie (`store`), what their files say, tokenizers and templates, the decoder."""
