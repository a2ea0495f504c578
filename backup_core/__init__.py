"""Pagekeeper: incremental backup of Azure disks. docs/architecture.md explains how it is built and why."""

__version__ = "0.1.0"
"""The version of the whole repository. Health, the lines of the log and the description of the API show it."""
