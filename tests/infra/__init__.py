"""What can be known of infra/ without the cloud."""
