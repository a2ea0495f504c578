"""Pure rules: values in, values out. No clock, environment, logging or I/O; standard library, and croniter for schedules."""
