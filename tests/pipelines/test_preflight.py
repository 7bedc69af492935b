"""Bad input of a job that uses Ray: told in one line before Ray starts, in the same words by the job and by `plan`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from refusals import refused
from tiny_job import FRAMES, square_episode

from roboalign_ray.config.loading import dump_yaml, load_job
from roboalign_ray.episodes.action_card import ACTION_CARD, ActionCard
from roboalign_ray.episodes.store import write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.capacity import cluster_nodes as cluster_view
from roboalign_ray.pipelines.capacity.cluster_nodes import ClusterView, cluster_of, usable_cpus
from roboalign_ray.pipelines.capacity.placement import Node, placement_of, roles_of
from roboalign_ray.pipelines.capacity.plan import make_plan, print_plan
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready, find_fault


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy job whose reward is a student, and `job.yaml`."""
    from judged_job import make_judged_job

    folder = tmp_path_factory.mktemp("judged job")
    (folder / "job.yaml").write_text(dump_yaml(make_judged_job(folder)))
    return folder


PLACES = (
    "tokenizer_weights=tokenizer",
    "world_model_weights=world_model",
    "episodes.store=store",
    "judge.weights=student",
    "judge.replay=pairs",
)


@pytest.fixture
def job(judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which may be spoiled, as the current folder; nothing may start Ray."""
    folder = Path(shutil.copytree(judged, tmp_path / "my job, größer"))
    monkeypatch.chdir(folder)

    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    return folder


def words(command: str, *settings: str) -> list[str]:
    given = [part for setting in (*PLACES, *settings) for part in ("--set", setting)]
    return [*command.split(), *given]


def nothing(_: Path) -> None:
    """The settings alone are wrong."""


def a_file(folder: Path) -> None:
    shutil.rmtree(folder / "store")
    (folder / "store").write_text("no store")


def an_empty_folder(folder: Path) -> None:
    shutil.rmtree(folder / "store")
    (folder / "store").mkdir()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def statistics(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "store/statistics.json", **changes)


def episodes(count: int, dims: int = 2) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        def episode(number: int):
            made = square_episode(number)
            actions = np.zeros((FRAMES, dims), np.float32)
            names = tuple(f"delta_{n}" for n in range(dims))
            return made.__class__(
                **{
                    **vars(made),
                    "actions": actions,
                    "action_names": names,
                    "action_kinds": ("delta",) * len(names),
                }
            )

        write_store(map(episode, range(count)), folder / "store", held_out_fraction=0.3, overwrite=True)

    return make


def torn(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:200]) and None


def replaced(name: str, by: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        shutil.rmtree(folder / name)
        shutil.copytree(folder / by, folder / name)

    return replace


def model_card(**changes: object) -> Callable[[Path], None]:
    """The world model's action card with other fields, and the hash that belongs to them."""

    def change(folder: Path) -> None:
        card = ActionCard.load(folder / "world_model")
        assert card is not None
        card.model_copy(update=changes).save(folder / "world_model")

    return change


# field: (the world model's card differs in it, what the line says of store and model)
OTHER_CARDS: dict[str, tuple[dict[str, object], str]] = {
    "name": (
        {"names": ("delta_row", "x"), "kinds": ("delta", "absolute")},
        "action 1 is 'delta_column' (delta) in the store, 'x' (absolute) in the model; use the model",
    ),
    "kind": ({"kinds": ("velocity", "delta")}, "(delta) in the store, 'delta_row' (velocity) in the model"),
    "rate": (
        {"rate": 5.0, "stride": 2},
        "at 10 Hz, every frame in the store, at 5 Hz, every 2nd frame of 10 Hz in the model; "
        "set episodes.frame_stride to 2",
    ),
    "stride": ({"rate": None, "stride": 4}, "one action covers 1 frames in the store, 4 in the model"),
    "robot": ({"embodiments": ("franka",)}, "the robot is toy in the store, franka in the model"),
}

# kind: (what is wrong in the folder, settings, what the line must say)
CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "a file as the store": (a_file, (), "is a file, not a folder"),
    "an empty folder as the store": (an_empty_folder, (), "no episode store here"),
    "a store of a newer version": (statistics(schema_version=99), (), "schema version 99"),
    "pairs as the store": (replaced("store", "pairs"), (), "/store"),
    "one episode": (episodes(1), (), "no episode"),
    "actions of more dimensions": (
        episodes(12, 3),
        (),
        "the store's actions have 3 dimensions, the world model 2",
    ),
    "a view that is not there": (nothing, ("episodes.view=wrist",), "no view 'wrist'; it has front"),
    "episodes too short": (nothing, ("rollout.horizon=10",), "has the 11 frames of a window"),
    "a stride too large": (nothing, ("episodes.frame_stride=3",), "has the 13 frames of a window"),
    "no weights": (nothing, ("world_model_weights=absent",), "absent: no such folder"),
    "the tokenizer as the world model": (nothing, ("world_model_weights=tokenizer",), "no world model here"),
    "the world model as the tokenizer": (nothing, ("tokenizer_weights=world_model",), "no tokenizer here"),
    "a torn tokenizer": (torn("tokenizer/tokenizer.safetensors"), (), "cannot be read as weights"),
    "a torn world model": (torn("world_model/model.safetensors"), (), "cannot be read as weights"),
    "a torn student": (torn("student/student.safetensors"), (), "cannot be read as weights"),
    "a world model without a layout": (
        lambda folder: (folder / "world_model/layout.json").unlink(),
        (),
        "holds no layout.json",
    ),
    "a world model with a torn config": (
        torn("world_model/config.json"),
        (),
        "config.json: cannot be read as model config",
    ),
    "a world model with another's config": (
        lambda folder: (folder / "world_model/config.json").write_text('{"vocab_size": 7}') and None,
        (),
        "config.json has a vocabulary of 7, layout.json of",
    ),
    "a world model without action bins": (
        lambda folder: (folder / "world_model/action_bins.json").unlink(),
        (),
        "no action bins",
    ),
    **{
        f"an action card with another {field}": (model_card(**changes), (), expected)
        for field, (changes, expected) in OTHER_CARDS.items()
    },
    "a torn action card": (torn("world_model/action_card.json"), (), "cannot be read as action card"),
    "an action card of another hash": (
        lambda folder: edit(folder / "world_model/action_card.json", rate=7.0),
        (),
        "that of its fields",
    ),
    "an action card of more dimensions": (
        model_card(
            names=("a", "b", "c"), units=("",) * 3, kinds=("delta",) * 3, bounds=(None,) * 3, statistics=None
        ),
        (),
        "the action card has 3 dimensions, layout.json 2",
    ),
    "the shipped tokenizer beside it": (
        nothing,
        ("tokenizer_weights=shipped",),
        "was made for another layout",
    ),
    "a teacher as the student": (nothing, ("judge.weights=world_model",), "no student here"),
    "a student as the teacher": (
        nothing,
        ("judge.relabel.teacher=vlm", "teacher.model=./student"),
        "no model here: config.json is missing",
    ),
    "a world model as the teacher": (
        nothing,
        ("judge.relabel.teacher=vlm", "teacher.model=./world_model"),
        "is no vision-language model",
    ),
    "a store as the pairs": (nothing, ("judge.replay=store",), "/store"),
    "no worker": (
        nothing,
        ("cluster.rollout.workers=0",),
        "cluster.rollout.workers: expected greater than 0",
    ),
    "too many cores": (
        nothing,
        ("cluster.learner.num_cpus=999",),
        "the job cannot be placed: alignment: CPU",
    ),
    "a GPU more than there are": (nothing, ("cluster.scorer.num_gpus=99",), "alignment: GPU: 99 needed"),
    "a resource that nothing has": (
        nothing,
        ("cluster.rollout.resources={spot: 1}",),
        "alignment: spot: 1 needed",
    ),
    "cores for the teacher": (nothing, ("cluster.teacher.num_cpus=999",), "alignment: CPU: 1000"),
    "cores for the distiller": (nothing, ("cluster.distiller.num_cpus=999",), "alignment: CPU: 1000"),
    "an object store too large": (nothing, ("cluster.object_store_gb=1e6",), "memory: object_store_gb 1e+06"),
}


BOTH_PARTS = ("actions of more dimensions", "an object store too large")


@pytest.mark.parametrize("kind", CASES)
def test_align_and_plan_refuse_in_the_same_words(
    kind: str, job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    prepare, settings, expected = CASES[kind]
    prepare(job)
    line = refused(words("align job.yaml --quiet --out run", *settings), job, capsys)
    assert expected in line
    planned = refused(words("plan job.yaml --json", *settings), job, capsys)
    # Where both parts of a job are wrong, the plan tells of the first one.
    assert planned == line or kind in BOTH_PARTS
    assert expected.removesuffix(", the world model 2") in planned


# command, settings, what the line must say
OTHERS = [
    (
        "pretrain job.yaml --quiet --out run",
        ("episodes.store=absent",),
        "absent: no such folder; make one with: roboalign episodes",
    ),
    ("pretrain job.yaml --quiet --out run", ("episodes.view=wrist",), "no view 'wrist'"),
    (
        "pretrain job.yaml --quiet --out run",
        ("world_model.action_dims=5",),
        "set world_model.action_dims to 2",
    ),
    ("pretrain job.yaml --quiet --out run", ("world_model.window_frames=11",), "11 frames of a window"),
    ("pretrain job.yaml --quiet --out run", ("cluster.trainer.workers=5",), "do not divide among 5 workers"),
    (
        "pretrain job.yaml --quiet --out run",
        ("cluster.trainer.num_cpus=999",),
        "pre-training: CPU: 999 needed",
    ),
    (
        "pretrain job.yaml --quiet --stage world_model --out run",
        ("tokenizer_weights=store",),
        "no tokenizer here",
    ),
    ("evaluate job.yaml --quiet --out run", ("episodes.view=wrist",), "no view 'wrist'"),
    ("evaluate job.yaml --quiet --out run --model tokenizer", ("evaluation.horizon=4",), "layout.json"),
    (
        "evaluate job.yaml --quiet --out run",
        ("evaluation.horizon=4", "episodes.frame_stride=2"),
        "at 5 Hz, every 2nd frame of 10 Hz in the store, at 10 Hz, every frame in the model; "
        "set episodes.frame_stride to 1",
    ),
    (
        "bench build job.yaml --quiet --out run",
        ("bench.frames=4", "episodes.frame_stride=2"),
        "set episodes.frame_stride to 1",
    ),
    ("demo job.yaml --quiet --out run", ("evaluation.horizon=10",), "11 frames of a window"),
    (
        "demo job.yaml --quiet --out run",
        ("evaluation.horizon=4", "cluster.learner.num_cpus=999"),
        "alignment: CPU",
    ),
    ("chaos job.yaml --quiet --out run", ("cluster.learner.num_cpus=999",), "alignment: CPU"),
    ("reproduce alignment job.yaml --quiet --out run", ("cluster.learner.num_cpus=999",), "alignment: CPU"),
    ("distill job.yaml --quiet --pairs pairs --out run", ("cluster.trainer.num_cpus=999",), "training: CPU"),
    ("bench build job.yaml --quiet --out run", ("episodes.view=wrist",), "no view 'wrist'"),
    (
        "judge label pairs --out run --profile job.yaml",
        ("teacher.backend=vllm", "teacher.model=shipped"),
        "pip install 'roboalign-ray[teacher]'",
    ),
    (
        "judge label pairs --out run --profile job.yaml",
        ("teacher.model=shipped", "cluster.teacher.num_cpus=999"),
        "labelling: CPU: 999 needed",
    ),
    (
        "judge serve --profile job.yaml --port 18765",
        ("cluster.scorer.num_cpus=999",),
        "serving: CPU: 999 needed",
    ),
    ("align job.yaml --quiet --out job.yaml", (), "job.yaml: is a file, not a folder"),
    ("align job.yaml --quiet --out job.yaml/run", (), "job.yaml: is a file, not a folder"),
    ("align job.yaml --quiet --out store", (), "store: the job reads from this folder"),
    ("align job.yaml --quiet --out store/run", (), "store/run: the job reads from this folder"),
]


@pytest.mark.parametrize(("command", "settings", "expected"), OTHERS)
def test_every_job_refuses_before_ray_starts(
    command: str,
    settings: tuple[str, ...],
    expected: str,
    job: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("roboalign_ray.pipelines.preflight.inputs._installed", lambda name: False)
    assert expected in refused(words(command, *settings), job, capsys)


def test_a_good_job_passes_from_a_folder_with_spaces_and_relative_paths(job: Path) -> None:
    config = load_job("job.yaml", PLACES)
    for kind in ("pretrain", "align", "select", "bench"):
        ready = check_ready(Preflight(kind, config, Path("run")))
        assert ready.episodes.store == str(job / "store")
    assert not (job / "run").exists()


def test_what_cannot_be_compared_is_told_once_and_stops_nothing(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_job("job.yaml", PLACES)
    check_ready(Preflight("align", config, Path("run")))
    assert capsys.readouterr().err == ""
    model_card(kinds=("unknown", "delta"), embodiments=())(job)
    for _ in range(2):  # as by a demo, and then by its alignment
        check_ready(Preflight("align", config, Path("run")))
    told = f"note: {job}/store and {job}/world_model: not known in the model, so not compared: "
    assert capsys.readouterr().err == f"{told}the kind of delta_row; the robot\n"


def test_a_world_model_of_an_earlier_version_is_taken_and_the_plan_says_so(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "world_model" / ACTION_CARD).unlink()
    plan = make_plan(load_job("job.yaml", PLACES))
    assert plan.faults == {}
    assert plan.actions["world model"] == "no action card"
    [note] = plan.notes
    assert note.startswith(f"{job}/world_model: holds no action card")
    print_plan(plan)
    lines = capsys.readouterr().out
    assert f"\nnote: {note}\n" in lines
    shown = " ".join(lines.split())
    assert "delta_row delta, delta_column delta; 10 Hz, every frame; toy; card " in shown
    assert plan.as_json()["notes"] == [note]


def test_a_store_of_an_earlier_version_is_compared_by_what_its_episodes_say(job: Path) -> None:
    path = job / "store/statistics.json"
    told = json.loads(path.read_text())
    for key in ("kinds", "bounds", "rate", "stride", "embodiments"):
        del told["actions"]["2"][key]
    path.write_text(json.dumps(told))
    config = load_job("job.yaml", PLACES)
    assert find_fault(Preflight("align", config)) is None
    model_card(rate=5.0, stride=2)(job)
    fault = find_fault(Preflight("align", config))
    assert fault is not None
    assert "set episodes.frame_stride to 2" in fault.line()


def test_other_statistics_are_told_of_an_alignment(job: Path) -> None:
    card = ActionCard.load(job / "world_model")
    assert card is not None
    assert card.statistics is not None
    wider = card.statistics.model_copy(update={"p01": (-900.0, -2.0), "p99": (900.0, 2.0)})
    model_card(statistics=wider)(job)
    ready = Preflight("align", load_job("job.yaml", PLACES))
    assert find_fault(ready) is None
    assert "values of delta_row lie elsewhere" in " ".join(ready.notes)


def test_paper_rt1_as_it_comes_says_what_is_missing(job: Path) -> None:
    fault = find_fault(Preflight("pretrain", load_job("paper_rt1")))
    assert fault is not None
    assert fault.line().startswith(f"{job}/runs/rt1_store: no such folder")


def test_one_core_is_too_few_for_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its roles take 1.75; as in a container of one CPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with pytest.raises(UserError, match=r"alignment: CPU: 1\.75 needed, 1 in the cluster"):
        check_ready(Preflight("demo", load_job("demo")))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "800000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_containers_share_of_cores(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(cluster_view, "_cgroup", lambda name: files.get(name, ""))
    assert usable_cpus() == cores


# --- clusters that are joined --------------------------------------------------------------------------------------


class Told:
    """What Ray's state says of groups of nodes."""

    def __init__(self, groups: list[tuple[str, dict[str, int], int]]) -> None:
        from ray.core.generated import autoscaler_pb2

        config = autoscaler_pb2.ClusterConfig()
        for name, resources, most in groups:
            group = config.node_group_configs.add(name=name, max_count=most)
            for key, amount in resources.items():
                group.resources[key] = amount
        self.config = config

    def get_cluster_config(self):
        return self.config


def connected(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[float, str]], told: Told | None = None
) -> ClusterView:
    """The view of a running cluster: (CPUs, group) per node."""
    alive = [
        {
            "Alive": True,
            "NodeManagerHostname": f"n{number}",
            "Resources": {"CPU": cpus, "memory": 1e9, "node:1": 1.0},
            "Labels": {"ray.io/node-group": group} if group else {},
        }
        for number, (cpus, group) in enumerate(nodes)
    ]
    dead = {**alive[0], "Alive": False, "Resources": {"CPU": 1000.0}}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])
    monkeypatch.setattr("ray._private.state.state", told or Told([]))
    return cluster_of(load_job("demo").cluster)


def test_the_connected_cluster_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    view = connected(monkeypatch, [(1.0, "")])
    assert view == ClusterView((Node("n0", {"CPU": 1.0}, 1e9),))
    with pytest.raises(UserError, match=r"CPU: 1\.75 needed, 1 in the cluster"):
        check_ready(Preflight("align", load_job("demo")))


def test_an_autoscalers_workers_count_up_to_their_most(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told([("head", {"CPU": 1}, 1), ("small", {"CPU": 1, "memory": 5}, 3)])
    view = connected(monkeypatch, [(1.0, "head"), (1.0, "small")], told)
    assert [node.resources["CPU"] for node in view.nodes] == [1.0] * 4
    assert not view.open_ended
    assert placement_of("align", load_job("demo"), view.nodes, here=False).fits
    more = load_job("demo", ["cluster.rollout.workers=9"])
    assert "needed, 4 in the cluster" in placement_of("align", more, view.nodes, here=False).missing


@pytest.mark.parametrize("told", [None, Told([("small", {"CPU": 1}, -1)])])
def test_a_cluster_that_grows_nobody_knows_how_far_refuses_nothing(
    told: Told | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = connected(monkeypatch, [(1.0, "head")], told)
    assert view.open_ended
    check_ready(Preflight("align", load_job("demo")))
    plan = make_plan(load_job("demo"))
    assert plan.missing == ""
    assert "1.75 needed" in plan.as_json()["placement"]["alignment"]["missing"]


def test_the_plan_counts_teacher_and_distiller() -> None:
    """Where a student rewards: the distiller, and the teacher unless nobody labels."""
    names = {
        how: [role for role, _ in roles_of("align", load_job("demo", settings))]
        for how, settings in {
            "vlm": [],
            "nobody": ["judge.relabel.teacher=none"],
            "fidelity": ["reward.judged.weight=0"],
        }.items()
    }
    assert names == {
        "vlm": ["rollout", "scorer", "learner", "teacher", "distiller"],
        "nobody": ["rollout", "scorer", "learner", "distiller"],
        "fidelity": ["rollout", "scorer", "learner"],
    }
