"""Run the default suite as two pytest processes side by side: training jobs on Ray, and everything else.

    python tests/in_halves.py

Each half takes about as long as the other and keeps about one core busy. The output of the jobs' half is shown at the
end, so that the two do not mix. The exit code is 0 only where both halves pass.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JUDGING = (
    "test_judge_"  # these tests of pipelines belong to the other half, which would end early without them
)


def main() -> int:
    """Run both halves to their end."""
    pytest = [sys.executable, "-m", "pytest"]
    jobs = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests/pipelines").glob("test_*.py"))
        if not path.name.startswith(JUDGING)
    ]
    with tempfile.TemporaryFile() as output:
        first = subprocess.Popen([*pytest, *jobs], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            print("tests/pipelines runs beside the rest", flush=True)
            second = subprocess.call([*pytest, "tests", *(f"--ignore={job}" for job in jobs)], cwd=ROOT)
            first.wait()
        except KeyboardInterrupt:  # the terminal interrupts the first half too
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                first.wait(timeout=60)
            second = 130
        finally:
            first.kill()
            output.seek(0)
            print("\ntests/pipelines:", flush=True)
            sys.stdout.buffer.write(output.read())
    # A killed half has a negative code.
    return next((abs(code) for code in (first.wait(), second) if code), 0)


if __name__ == "__main__":
    sys.exit(main())
