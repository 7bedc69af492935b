"""What runs where: job profiles, found by name at run time, and the clusters that they are made for."""
