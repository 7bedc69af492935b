"""The roles of a job: number of workers, and resources of each."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, StringConstraints
from pydantic_core import PydanticCustomError

from roboalign_ray.config.base import FrozenConfig

# Ray rejects these only when a worker is placed, long after the job has started; here the profile is rejected.
_LEAST_SHARE = 1e-4  # Ray's granularity of resources
_SETTINGS_OF = {  # names that Ray does not accept as custom resources, and the settings to use instead
    "CPU": "set num_cpus",
    "GPU": "set num_gpus",
    "memory": "leave it out: the memory of a worker is not reserved",
    "object_store_memory": "set cluster.object_store_gb",
}


def _countable(amount: float) -> float:
    if 0 < amount < _LEAST_SHARE:
        text = f"{amount:g} is less than Ray counts; give 0, or at least {_LEAST_SHARE:g}"
        raise PydanticCustomError("amount", "{text}", {"text": text})
    return amount


def _custom(resources: dict[str, float]) -> dict[str, float]:
    for name, remedy in _SETTINGS_OF.items():
        if name in resources:
            raise PydanticCustomError(
                "resource", "{text}", {"text": f"{name} is no custom resource; {remedy}"}
            )
    return resources


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_countable)]
ResourceName = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class RoleConfig(FrozenConfig):
    """One role's workers.

    Attributes:
        workers: number of actors of this role.
        num_cpus, num_gpus: resources per worker; with fractions, workers share a device.
        threads: torch threads per worker; 0 takes max(1, num_cpus).
        resources: custom Ray resources per worker.
        accelerator_type: Ray accelerator type, for example "H100".
        max_restarts: maximum number of replacements of a lost worker.
        deadline_s: deadline of one call, in seconds.
    """

    workers: int = Field(1, gt=0, le=10_000)
    num_cpus: Amount = 1.0
    num_gpus: Amount = 0.0
    threads: int = Field(0, ge=0, le=1024)
    resources: Annotated[dict[ResourceName, Amount], AfterValidator(_custom)] = {}
    accelerator_type: ResourceName | None = None
    max_restarts: NonNegativeInt = 2
    deadline_s: float = Field(600.0, gt=0)


class ClusterConfig(FrozenConfig):
    """The roles of an alignment job, the trainers of pre-training, and the connection to Ray.

    `teacher` labels; `distiller` trains the student on the labels during an alignment job.

    Attributes:
        address: "local" starts Ray here; "auto" joins a running cluster; or a ray:// address.
        object_store_gb: size of the object store, if Ray is started here.
        reachable: a Ray that is started here listens on every interface, including its metrics page; else on loopback
            only.
    """

    address: str = "local"
    reachable: bool = False
    rollout: RoleConfig = RoleConfig()
    scorer: RoleConfig = RoleConfig()
    learner: RoleConfig = RoleConfig(max_restarts=0)
    trainer: RoleConfig = RoleConfig(max_restarts=0)
    teacher: RoleConfig = RoleConfig()
    distiller: RoleConfig = RoleConfig()
    object_store_gb: float = Field(1.0, ge=0.08)  # Ray's minimum is 78,643,200 bytes
