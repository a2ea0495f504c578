"""The ports in memory, for tests of activities and for the simulator. They pass the same port suite as the Azure adapters."""
