"""A folder for PYTHONPATH: Python processes that others start then run its `sitecustomize` first."""
