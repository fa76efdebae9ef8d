"""A run: its steps, its balancers, what it writes."""
