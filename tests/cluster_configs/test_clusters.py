"""What runs where: manifests against their schemas, profiles against the clusters that they are made for."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.pipelines.capacity.cluster_nodes import described_nodes
from roboalign_ray.pipelines.capacity.placement import GPU, bundles_of, place

FOLDER = Path(__file__).resolve().parents[2] / "cluster_configs"
SHAPES = {"single_gpu": 1, "node_8gpu": 8, "paper_rt1": 8, "mixed_64": 64, "fleet_1000": 1000}
POOLS = ("spot", "scoring", "teaching")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def cluster_of(profile: str) -> Path:
    return (
        FOLDER
        / "clusters"
        / f"{ {'single_gpu': 'gpu_1', 'paper_rt1': 'node_8gpu'}.get(profile, profile) }.yaml"
    )


def read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), LOADER)


# --- Kubernetes --------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """The schema with unknown keys refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    free = closed.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in closed
    if isinstance(closed.get("properties"), dict) and "type" in closed and not free:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.parametrize(
    ("manifest", "definition"),
    [
        ("raycluster", "ray.io_rayclusters"),
        ("rayjob", "ray.io_rayjobs"),
        ("rayservice", "ray.io_rayservices"),
    ],
)
def test_manifests_satisfy_kuberays_schemas(manifest: str, definition: str, real_data: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray")
    path = real_data / "kuberay_crds" / f"{definition}.yaml.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        crd = yaml.load(file, LOADER)
    version = next(item for item in crd["spec"]["versions"] if item["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    value = read(FOLDER / "kuberay" / f"{manifest}.yaml")
    assert (value["apiVersion"], value["kind"]) == ("ray.io/v1", crd["spec"]["names"]["kind"])
    jsonschema.Draft7Validator(schema).validate(value)
    value["spec"]["enableInTreeAutoscalng"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscalng"):
        jsonschema.Draft7Validator(schema).validate(value)


def test_the_job_brings_the_cluster_that_also_stands_alone() -> None:
    cluster, job = (read(FOLDER / "kuberay" / f"{name}.yaml")["spec"] for name in ("raycluster", "rayjob"))
    assert job["rayClusterSpec"] == cluster
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    secret = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    redis = list(yaml.load_all((FOLDER / "kuberay" / "redis.yaml").read_text(encoding="utf-8"), LOADER))
    service, container = redis[0], redis[1]["spec"]["template"]["spec"]["containers"][0]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == (
        f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == secret


def test_the_service_stands_on_pods_of_the_same_kind() -> None:
    cluster = read(FOLDER / "kuberay" / "raycluster.yaml")["spec"]
    served = read(FOLDER / "kuberay" / "rayservice.yaml")["spec"]["rayClusterConfig"]
    keys = ("rayVersion", "authOptions", "gcsFaultToleranceOptions", "autoscalerOptions")
    assert {key: served[key] for key in keys} == {key: cluster[key] for key in keys}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for group in served["workerGroupSpecs"]:
        same = groups[group["groupName"]]
        [container] = group["template"]["spec"]["containers"]
        assert container.pop("ports") == [{"containerPort": 8000, "name": "serve"}]
        assert group["template"] == same["template"]
        assert group["rayStartParams"] == same["rayStartParams"]


def test_the_service_names_applications_that_fit_their_pools() -> None:
    """Ray's schema of Serve configs; arguments that the builder takes; the last replica still has a GPU of its pool."""
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    from roboalign_ray.pipelines.serve.judge import ServedJob, application

    spec = read(FOLDER / "kuberay" / "rayservice.yaml")["spec"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    assert (deployed.http_options.host, deployed.http_options.port) == ("0.0.0.0", 8000)
    room = worker_room(spec["rayClusterConfig"])
    for served in deployed.applications:
        assert import_attr(served.import_path) is application
        wanted = ServedJob.model_validate(served.args)
        config = load_job(wanted.profile, wanted.overrides)
        role = config.cluster.teacher if wanted.judge == "teacher" else config.cluster.scorer
        [(pool, amount)] = role.resources.items()
        assert (served.name, served.route_prefix) == (wanted.judge, f"/{wanted.judge}")
        assert amount == role.num_gpus == 1
        assert config.serving.max_replicas == room[pool]


def worker_room(cluster: Any) -> Counter[str]:
    """Largest amounts of GPUs and pools."""
    found: Counter[str] = Counter()
    for group in cluster["workerGroupSpecs"]:
        resources = yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"]))
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, amount in {**resources, GPU: int(limits["nvidia.com/gpu"])}.items():
            found[name] += amount * group["maxReplicas"]
    return found


# --- cluster launcher --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aws", "gcp", "on_premises"])
def test_launcher_files_satisfy_rays_own_check(name: str) -> None:
    pytest.importorskip("jsonschema", reason="comes with Ray")
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = read(FOLDER / "ray_up" / f"{name}.yaml")
    if name == "on_premises":  # the launcher makes its node types from the addresses
        config["cluster_synced_files"] = []
        assert config["max_workers"] == config["min_workers"] == len(config["provider"]["worker_ips"])
        del config["min_workers"]
    else:
        config = fillout_defaults(config)
        types = config["available_node_types"]
        assert config["max_workers"] == sum(
            value["max_workers"] for key, value in types.items() if key != config["head_node_type"]
        )
        assert types["head"]["resources"]["CPU"] == 0
    validate_config(config)


def test_only_rollouts_stand_on_spot_instances() -> None:
    aws, gcp = (read(FOLDER / "ray_up" / f"{name}.yaml")["available_node_types"] for name in ("aws", "gcp"))
    spot = [key for key, value in aws.items() if "InstanceMarketOptions" in value["node_config"]]
    spot += [
        key
        for key, value in gcp.items()
        if any("provisioningModel" in item for item in value["node_config"].get("scheduling", []))
    ]
    assert spot == ["rollout_spot", "rollout_spot"]
    assert [key for key, value in {**aws, **gcp}.items() if "spot" in value["resources"]] == ["rollout_spot"]


def launcher_nodes(name: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for value in read(FOLDER / "ray_up" / f"{name}.yaml")["available_node_types"].values():
        for resource, amount in value["resources"].items():
            found[resource] += amount * value.get("max_workers", 1)
    return found


def test_every_way_to_64_gpus_has_the_same_pools() -> None:
    kuberay = read(FOLDER / "kuberay" / "raycluster.yaml")["spec"]
    described: Counter[str] = Counter()
    for node in described_nodes(cluster_of("mixed_64")):
        described.update({name: int(amount) for name, amount in node.resources.items()})
    for found in (worker_room(kuberay), launcher_nodes("aws"), launcher_nodes("gcp")):
        assert [found[name] for name in (GPU, *POOLS)] == [described[name] for name in (GPU, *POOLS)]


# --- profiles on the clusters that they are made for -------------------------------------------------------------


@pytest.mark.parametrize("profile", SHAPES)
def test_every_profile_fits_its_cluster_and_no_smaller_one(profile: str) -> None:
    job, nodes = load_job(profile), described_nodes(cluster_of(profile))
    assert sum(node.resources[GPU] for node in nodes) == SHAPES[profile]
    roles = {
        role: bundles_of(role, getattr(job.cluster, role))
        for role in ("rollout", "scorer", "learner", "trainer")
    }
    aligning = [*roles["rollout"], *roles["scorer"], *roles["learner"]]
    for bundles in (aligning, roles["trainer"]):
        assert place(bundles, nodes).missing == ""
    if len(nodes) > 1:  # pools: each worker stands in its own, and without one of its nodes it does not fit
        placed = place(aligning, nodes).nodes
        assert {(b.role, re.sub(r"-\d+$", "", node)) for b, node in zip(aligning, placed, strict=True)} == {
            ("rollout", "rollout"),
            ("scorer", "scorer"),
            ("learner", "learner"),
        }
        assert place(bundles_of("teacher", job.cluster.teacher), nodes).fits
        fewer = [node for node in nodes if node.name != "rollout-0"]
        assert re.match(r"GPU: |spot: ", place(aligning, fewer).missing)


def llama(job: JobConfig) -> tuple[int, int]:
    """Weights of all layers, and of the embedding (as many again in the head)."""
    model, vocabulary = job.world_model, 2 * 4375 + 256 + 2
    layer = 4 * model.hidden**2 + 3 * model.hidden * model.ffn
    return model.layers * layer, vocabulary * model.hidden


def convolution(inputs: int, outputs: int, kernel: int, places: int) -> float:
    return 2.0 * inputs * outputs * kernel**2 * places


def decoder_flops(job: JobConfig) -> tuple[float, float]:
    """Of the dynamics decoder for a frame, and of the context decoder's features."""
    tokenizer = job.tokenizer
    places = [tokenizer.height * tokenizer.width // 4**i for i in range(len(tokenizer.channels))]
    pairs = list(zip(tokenizer.channels, places, strict=True))
    plain = sum(2 * tokenizer.blocks * convolution(c, c, 3, n) for c, n in pairs)
    plain += convolution(tokenizer.latent, pairs[-1][0], 3, places[-1])
    plain += sum(convolution(pairs[i + 1][0], 4 * c, 1, places[i + 1]) for i, (c, _) in enumerate(pairs[:-1]))
    fused = plain + sum(convolution(2 * c, c, 1, n) for c, n in pairs)
    c, n = pairs[-1]
    fused += 4 * convolution(c, c, 1, n) + 4.0 * n * n * c  # attention at the coarsest scale
    return fused + convolution(pairs[0][0], 3, 3, places[0]), plain


def vgg_flops(job: JobConfig) -> float:
    widths, inputs, side, total = (
        [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512],
        3,
        1,
        0.0,
    )
    for width in widths:
        if not width:
            side *= 2
            continue
        total += convolution(inputs, width, 3, job.tokenizer.height * job.tokenizer.width // side**2)
        inputs = width
    return total


def test_what_simulate_assumes_follows_from_the_sizes_and_the_stated_rates() -> None:
    """The closed forms of docs/clusters.md."""
    job, work = load_job("mixed_64"), load_job("mixed_64").asynchrony.workload
    layers, embedding = llama(job)
    samples, frames, window = job.alignment.group_size, job.rollout.horizon, job.rollout.refresh.window
    first, last = 1280 + 80, 1280 + 7 * 80 + 6 * 13
    in_flight = 4 * samples
    cache = 2 * job.world_model.layers * job.world_model.hidden * 2 * (first + last) / 2
    step_s = (2 * (layers + embedding) + in_flight * cache) / 864e9 / 0.5
    decode_s = frames * 80 * samples / (in_flight / step_s)
    decoder, features = decoder_flops(job)
    refresh_s = samples * 4 * decoder / (0.3 * 183e12)  # decode, encode twice, features: four passes alike
    prefill_s = samples * first * 2 * (layers + embedding) / (0.3 * 362e12)
    assert work.rollout.seconds == pytest.approx(decode_s + refresh_s + prefill_s, rel=0.02)

    extra_contexts = (frames // window - 1) * samples
    scoring = samples * frames * (decoder + vgg_flops(job)) + extra_contexts * features
    assert work.scorer.seconds == pytest.approx(scoring / (0.3 * 183e12), rel=0.02)

    attention = 4 * job.world_model.layers * job.world_model.hidden * last / 2
    forward = 2 * (layers + embedding) + attention
    trained = samples * frames // window * last
    assert work.learner.seconds == pytest.approx(trained * 4 * forward / (0.15 * 989e12), rel=0.02)


def update_seconds(job: JobConfig) -> dict[str, float]:
    work, batch = job.asynchrony.workload, job.alignment.prompts_per_update
    seconds = {
        role: batch * getattr(work, role).seconds / getattr(job.cluster, role).workers
        for role in ("rollout", "scorer", "learner")
    }
    return {**seconds, "learner": seconds["learner"] + work.weights_s}


@pytest.mark.parametrize("profile", ["mixed_64", "fleet_1000"])
def test_roles_keep_pace_with_each_other(profile: str) -> None:
    seconds = update_seconds(load_job(profile))
    assert max(seconds.values()) < 1.25 * min(seconds.values())


def test_simulation_finds_64_gpus_busy() -> None:
    from roboalign_ray.pipelines.capacity.simulation import simulate

    job = load_job("mixed_64")
    found = simulate(job, 10)
    assert min(found.utilisation.values()) > 0.6
    assert found.seconds_per_update == pytest.approx(max(update_seconds(job).values()), rel=0.25)


FACTS = {"prompts_per_update": 128, "learning_rate": 5e-5}


@pytest.mark.parametrize("profile", ["mixed_64", "fleet_1000"])
def test_what_is_called_published_is(profile: str) -> None:
    text = (FOLDER / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in lines:
        if match := re.match(r"\s*(\w+): (\S+)\s+# .*\[published\]", line):
            assert float(match[2]) == FACTS[match[1]], line
        if match := re.match(r"\s*(\w+): \S+\s+# .*\(published: ([\d.e-]+)\)", line):
            assert float(match[2]) == FACTS[match[1]], line
    for key, value in FACTS.items():
        assert getattr(load_job("mixed_64").alignment, key) == value


# --- Slurm -------------------------------------------------------------------------------------------------------

STUBS = {
    "srun": 'echo "srun $*" >> "$LOG"; trap "exit 0" TERM; for i in $(seq 100); do sleep 0.1; done',
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" != show ] || echo "$3" | tr , "\\n"',
    "ray": 'echo "ray $*" >> "$LOG"',
    "python": 'if [ "$1" = -c ]; then echo token; else cat > /dev/null; echo "joined $*" >> "$LOG"; fi',
    "roboalign": 'echo "roboalign $*" >> "$LOG"; trap "echo interrupted >> $LOG; exit 130" INT; '
    'for i in $(seq "$DRIVER_TENTHS"); do sleep 0.1; done; exit "$DRIVER_STATUS"',
}


def sbatch(
    folder: Path, *arguments: str, tenths: int = 1, status: int = 0, **environment: str
) -> subprocess.Popen:
    """The batch script, with programs in the place of Slurm's and Ray's that write down how they were called."""
    tools = folder / "bin"
    tools.mkdir()
    for name, body in STUBS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    return subprocess.Popen(
        ["bash", str(FOLDER / "slurm" / "align.sbatch"), *arguments],
        env={
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "LOG": str(folder / "log"),
            "DRIVER_TENTHS": str(tenths),
            "DRIVER_STATUS": str(status),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "n0,n1,n2",
            **environment,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Tests that run in the background of a shell ignore SIGINT, and so would all their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type, return-value]
    )


def log_of(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_the_batch_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "slurm" / "align.sbatch")], check=True)


@pytest.mark.parametrize("status", [0, 3])
def test_the_batch_job_ends_as_its_driver_does(tmp_path: Path, status: int) -> None:
    job = sbatch(tmp_path, "node_8gpu", "--set", "alignment.updates=2", status=status)
    assert job.wait(timeout=120) == status
    log = log_of(tmp_path)
    steps = [line for line in log if line.startswith("srun")]
    assert len(steps) == 2
    assert (
        sum("--nodelist=n0 ray start --head --node-ip-address=n0 --port=20077" in step for step in steps) == 1
    )
    assert sum("--nodes=2 --ntasks=2 --nodelist=n1,n2" in step for step in steps) == 1
    assert "joined - n0:20077 3 300" in log
    assert [line for line in log if line.startswith("roboalign")] == [
        "roboalign align node_8gpu --resume --quiet --set cluster.address=n0:20077 --out runs/node_8gpu "
        "--set alignment.updates=2"
    ]
    assert not any("requeue" in line for line in log)


def test_pools_of_a_heterogeneous_job_carry_their_resources(tmp_path: Path) -> None:
    lists = {f"SLURM_JOB_NODELIST_HET_GROUP_{n}": names for n, names in enumerate(("h0", "r0,r1", "s0"))}
    job = sbatch(tmp_path, "mixed_64", SLURM_HET_SIZE="3", **lists)
    assert job.wait(timeout=120) == 0
    steps = [line for line in log_of(tmp_path) if line.startswith("srun")]
    assert len(steps) == 3
    assert sorted(re.findall(r"--het-group=(\d)", " ".join(steps))) == ["0", "1", "2"]
    whole = (tmp_path / "log").read_text()
    assert "worker spot h0:20077" in whole
    assert "worker scoring h0:20077" in whole


@pytest.mark.parametrize(("sent", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_near_its_end_the_job_checkpoints_and_is_queued_again(
    tmp_path: Path, sent: signal.Signals, queued: bool
) -> None:
    job = sbatch(tmp_path, "node_8gpu", tenths=600)
    ends = time.monotonic() + 60
    while not any(line.startswith("roboalign") for line in log_of(tmp_path)):
        assert time.monotonic() < ends
        time.sleep(0.1)
    time.sleep(0.5)  # for the driver's own trap
    job.send_signal(sent)
    assert job.wait(timeout=120) == 130
    log = log_of(tmp_path)
    assert "interrupted" in log
    assert ("scontrol requeue 77" in log) == queued
