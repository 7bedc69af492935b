"""Ray, as jobs use it: start or join a cluster, worker pools, deadlines, messages."""
