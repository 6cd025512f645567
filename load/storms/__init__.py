"""Storms: what many clients do to the service at once, as locust suites. One scenario a file."""
