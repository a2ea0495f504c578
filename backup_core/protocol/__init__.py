"""What steps share: rights, ownership, fencing, run rows, marks, listings, and what is kept beside the backups."""
