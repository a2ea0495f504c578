"""What a backup and a restore cost in requests and bytes, and their copying beside the SDK's own ways."""
