"""Tools of other frameworks as tools of ours, and ours as theirs: LangChain, smolagents, Lagent. See
docs/tools-adapters.md."""
