"""Stop an alignment run and go on from its last checkpoint: the result is the same as without the stop.

python examples/resume.py
"""

import sys
from pathlib import Path

from roboalign_ray import align

if __name__ == "__main__":
    settings = ("alignment.checkpoint_every=1", "asynchrony.staleness=0", *sys.argv[1:])
    first = align("demo", "alignment.updates=1", *settings, out="runs/resumed")
    more = align("demo", "alignment.updates=2", *settings, out="runs/resumed", resume=True)
    print(f"{first.counts['groups']:.0f} groups before the stop, {more.counts['groups']:.0f} in all")
    print("checkpoints:", *sorted(path.name for path in Path("runs/resumed/checkpoints").glob("step-*")))
