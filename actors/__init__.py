"""Ray actors: each a thin, undecorated shell around one library object."""

import roboalign_ray as _roboalign_ray  # registers the torchvision guard in every worker process  # noqa: F401
