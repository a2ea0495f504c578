"""Seeded histories of the backup protocol: real orchestrators, activities and domain code over in-memory ports, disturbed."""
