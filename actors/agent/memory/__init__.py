"""What agents remember: a conversation within its budget of tokens, and notes that are found again by their words."""
