"""Pure rules: values in, values out. No clock, environment, logging or I/O; standard library only, and croniter for schedules."""
