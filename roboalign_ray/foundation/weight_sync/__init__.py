"""Weight versions: packing, manifests, publication."""
