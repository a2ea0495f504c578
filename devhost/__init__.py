"""The local platform: storage emulator, Functions host, demo. Development only; backup_core never imports it."""
