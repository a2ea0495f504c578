"""A development host for azure-functions apps with Durable Functions, on loopback, with its history in SQLite."""
