"""Pagekeeper: incremental backup of Azure page-blob disks. DESIGN.md beside this file tells how it is built and why."""
