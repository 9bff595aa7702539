"""X-ray images become 128 numbers."""
