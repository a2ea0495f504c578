"""Checks of infra/ that need no cloud."""
