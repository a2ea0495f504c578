"""Idempotent effects through ports: each is safe to run twice, late, or after its run has ended."""
