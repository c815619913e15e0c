"""Gateways: actors that speak other protocols, and turn them into messages of the bus."""
