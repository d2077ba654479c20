"""Planning: which units to remove within a threshold or a budget, in valid shapes, with sizes and forecast."""
