"""Agents: planners and executors over an event log, the models that they ask, and what they remember."""
