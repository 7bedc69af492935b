"""A folder for PYTHONPATH: child Python processes then run its `sitecustomize` first."""
