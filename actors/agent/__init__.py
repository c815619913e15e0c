"""Agents: runs as event logs, planners that decide, and the actors that carry it out."""
