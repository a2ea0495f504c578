"""A stand-in for Azure Resource Manager, as far as restores need it: the real azure-mgmt-compute client talks to it."""
