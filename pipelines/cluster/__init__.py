"""The Ray layer of jobs: starting or joining a cluster, worker pools, deadlines, messages."""
