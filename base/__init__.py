"""What every package shares and nothing else: errors, configs, files, leases, progress, hashing."""
