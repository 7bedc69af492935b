"""The rollout engine's forward pass in C, for CPUs in float32: one call per pass.

`decode.c` computes it, and `team.h` divides it among threads that spin briefly. The system's C compiler builds a
library at first use (`build.py`), which is called through ctypes (`decoder.py`). Without a compiler, or with
ROBOALIGN_NATIVE=0, the engine uses PyTorch's kernels instead.
"""
