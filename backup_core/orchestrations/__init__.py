"""Deterministic generators: they sequence steps, and base every decision on the answers of steps."""
