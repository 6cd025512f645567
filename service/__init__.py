"""Remit's service: HTTP over the kernel, the command line, and the embedded parts."""
