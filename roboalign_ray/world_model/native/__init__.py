"""The rollout engine's forward pass in C, for CPUs in float32: one call per pass, one parallel region per call.

`decode.c` is compiled with the system's C compiler when it is first needed (`build.py`) and called through ctypes
(`decoder.py`). Without a compiler, or with ROBOALIGN_NATIVE=0, the engine runs on PyTorch's kernels instead.
"""
