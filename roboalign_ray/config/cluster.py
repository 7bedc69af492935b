"""Which role runs on what: workers and resources each."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from roboalign_ray.config.base import FrozenConfig


class RoleConfig(FrozenConfig):
    """One role's workers.

    Attributes:
        workers: actors of this role.
        num_cpus, num_gpus: per worker; fractions share a device.
        threads: torch threads per worker; 0 takes max(1, num_cpus).
        resources: custom Ray resources per worker.
        accelerator_type: Ray accelerator type, for example "H100".
        max_restarts: how often another takes the place of a lost worker.
        deadline_s: longest wait for one reply, in seconds.
    """

    workers: PositiveInt = 1
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: NonNegativeInt = 0
    resources: dict[str, float] = {}
    accelerator_type: str | None = None
    max_restarts: NonNegativeInt = 2
    deadline_s: float = Field(600.0, gt=0)


class ClusterConfig(FrozenConfig):
    """The roles of an alignment job, the trainers of pre-training, and how Ray is reached.

    `teacher` labels, `distiller` trains the student on its labels while an alignment job runs.

    Attributes:
        address: "local" starts Ray here; "auto" joins a running cluster; or a ray:// address.
        reachable: Ray that is started here listens on every interface, its metrics page too; else on loopback alone.
    """

    address: str = "local"
    reachable: bool = False
    rollout: RoleConfig = RoleConfig()
    scorer: RoleConfig = RoleConfig()
    learner: RoleConfig = RoleConfig(max_restarts=0)
    trainer: RoleConfig = RoleConfig(max_restarts=0)
    teacher: RoleConfig = RoleConfig()
    distiller: RoleConfig = RoleConfig()
    object_store_gb: float = Field(1.0, gt=0)
