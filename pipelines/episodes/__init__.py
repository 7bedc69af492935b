"""Jobs that make episode stores: simulation and conversion."""
