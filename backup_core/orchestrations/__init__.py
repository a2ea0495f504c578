"""Deterministic generators: they sequence steps and decide nothing a step has not answered."""
