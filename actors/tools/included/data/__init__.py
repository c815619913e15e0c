"""Data analysis: tables in; questions in SQL or Python, in the sandbox; tables and plots out."""
