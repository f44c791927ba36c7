"""How much of a budget is spent. Pure."""
