"""The rollout engine's forward pass in C, for CPUs in float32: one call per pass.

`decode.c` computes it, `team.h` shares it out among threads that wait briefly. The system's C compiler makes a library
of them when it is first needed (`build.py`), which is called through ctypes (`decoder.py`). Without a compiler, or with
ROBOALIGN_NATIVE=0, the engine runs on PyTorch's kernels instead.
"""
