"""Run the default suite as two pytest processes side by side: jobs (`tests/pipelines`) and everything else.

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

TESTS = Path(__file__).resolve().parent
JOBS = TESTS / "pipelines"


def main() -> int:
    """Run both halves to their end."""
    pytest, jobs = [sys.executable, "-m", "pytest"], str(JOBS.relative_to(TESTS.parent))
    with tempfile.TemporaryFile() as output:
        first = subprocess.Popen([*pytest, jobs], stdout=output, stderr=subprocess.STDOUT, cwd=TESTS.parent)
        try:
            print(f"{jobs} runs beside the rest", flush=True)
            second = subprocess.call([*pytest, "tests", f"--ignore={jobs}"], cwd=TESTS.parent)
            first.wait()
        except KeyboardInterrupt:  # the terminal interrupts the first half too
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                first.wait(timeout=60)
            second = 130
        finally:
            first.kill()
            output.seek(0)
            print(f"\n{jobs}:", flush=True)
            sys.stdout.buffer.write(output.read())
    return next(
        (abs(code) for code in (first.wait(), second) if code), 0
    )  # a killed half has a negative code


if __name__ == "__main__":
    sys.exit(main())
