"""Retrieval over the documents of folders: found by words, cited by file and page or line."""
