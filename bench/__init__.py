"""The cost of a backup and a restore in requests and bytes, and their copying beside the SDK's own ways."""
