"""Training data: files of many formats read as typed samples, rendered by a model's chat template, tokenized ahead."""
