"""Where episodes come from: each module reads or makes one kind, behind the `EpisodeSource` interface."""
