"""Registers the torchvision guard when Python starts; see `torchvision_guard.guard_children`."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

import roboalign_ray as _roboalign_ray  # noqa: F401

# Python runs only the first sitecustomize it finds, so this one runs the environment's own as well.
_others = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
_hidden = PathFinder.find_spec("sitecustomize", _others)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(module_from_spec(_hidden))
