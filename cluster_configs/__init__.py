"""What runs where: job profiles, found by name at run time."""
