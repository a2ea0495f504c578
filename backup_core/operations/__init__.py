"""Operations that HTTP and timers call directly, without an orchestration."""
