"""How the figures grow with the size of trees, their depth, the tenants, the processes, and what has ended before."""
