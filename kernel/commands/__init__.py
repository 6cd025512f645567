"""What can be asked of the kernel, one use case a file."""
