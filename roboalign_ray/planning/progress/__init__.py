"""The learned progress cost: a network that reads task distances off single frames of a camera or two.

    distance to the target of the object, and of the hand to the object, in metres     labels of the simulator
    cost = 3 · object–target + hand–object                                             of every predicted frame

Distances between pictures fail as costs even in the true simulator: an arm in the wrong place costs twice, so a plan
that hides the arm is a minimum.
"""
