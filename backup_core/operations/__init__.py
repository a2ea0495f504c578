"""What HTTP and timers call directly, without an orchestration."""
