"""Rules that steps share: rights, ownership, fencing, run rows, marks, listings, and the documents beside the backups."""
