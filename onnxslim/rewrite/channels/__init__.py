"""Which channels of a graph can go: atoms, rules by operator, what is needed, and the cut."""
