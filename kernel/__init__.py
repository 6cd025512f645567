"""Remit's kernel: the domain, its transactions and its policy port. It knows nothing of HTTP."""
