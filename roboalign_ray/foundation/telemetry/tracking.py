"""Curves to Weights & Biases, for those who follow their runs there; a thin sink beside the files on disk.

The package is an extra ("tracking"). Without a network, WANDB_MODE=offline keeps a run in its folder until
`wandb sync` sends it.
"""

from __future__ import annotations

import importlib.util
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError, first_line

_IDENTITY = "wandb.id"


def check_tracking(project: str | None) -> None:
    """Check that runs can be tracked in a project; None always passes.

    Raises:
        UserError: the package is not installed.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "Weights & Biases is not installed",
            where="telemetry.wandb",
            remedy="pip install 'roboalign-ray[tracking]', or set it to null",
        )


class WandbRun:
    """A sink for scalars. A run that resumes goes on as the same one.

    Args:
        project: at Weights & Biases.
        folder: of the run's logs; the run's identity and its offline files are kept in it.
        name: of the run.
        settings: shown beside it, JSON types.

    Raises:
        UserError: not installed, or no run can be begun.
    """

    def __init__(self, project: str, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        check_tracking(project)
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        identity = folder / _IDENTITY
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        try:
            self._run: Any = wandb.init(
                project=project,
                dir=str(folder),
                id=identity.read_text(encoding="utf-8"),
                name=name,
                config=dict(settings),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases began no run ({first_line(error)})",
                where="telemetry.wandb",
                remedy="call 'wandb login', or set WANDB_MODE=offline",
            ) from error

    def scalars(self, version: int, values: Mapping[str, float]) -> None:
        """One update's scalars; what is not finite is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._run.log(finite, step=version, commit=True)

    def close(self) -> None:
        """Send or keep what is left."""
        self._run.finish()
