"""The tools that come with Callboard and need no model. Each folder is one set; see docs/tools-included.md."""
