"""Jobs that make episode stores: simulate, convert."""
