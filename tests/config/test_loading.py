"""Profiles and overrides: what loads, what it becomes, and how every mistake is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.config import ConfigError, JobConfig, TeacherConfig
from roboalign_ray.config.loading import dump_yaml, known_paths, load_job, parse_override, profile_names
from roboalign_ray.config.rewards import ExtensionRewardConfig

SHIPPED = (
    "chaos",
    "demo",
    "demo_diffusion",
    "fleet_1000",
    "hacking",
    "progress",
    "mixed_64",
    "node_8gpu",
    "paper_rt1",
    "persistence",
    "reproduce",
    "reproduce_diffusion",
    "shipped",
    "single_gpu",
    "teacher",
)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_profiles_are_found_by_name() -> None:
    assert profile_names() == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    job = load_job(name)
    assert job.name == name
    assert load_job(write(tmp_path, "dumped.yaml", dump_yaml(job))) == job


def test_published_sizes() -> None:
    """RLVR-World's layout: 1,280 context, 80 dynamics and 13 action tokens, 4,375 codes."""
    job = load_job("paper_rt1")
    sizes = (job.tokenizer.context_tokens, job.tokenizer.dynamics_tokens, job.world_model.action_dims)
    assert sizes == (1280, 80, 13)
    assert job.tokenizer.codes == 4375
    assert job.tokenizer.context_grid == (32, 40)
    assert (job.alignment.prompts_per_update, job.alignment.group_size) == (128, 16)
    assert job.teacher == TeacherConfig()  # published; what demo asks of its small one is undone


def test_base_then_profile_then_overrides(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "alignment: {updates: 3, group_size: 4}\nseed: 7\n")
    top = write(tmp_path, "top.yaml", "extends: base.yaml\nalignment: {updates: 4}\n")
    job = load_job(top, ["alignment.updates=5", "tokenizer.channels=[96,128]", "alignment.updates=6"])
    assert (job.alignment.updates, job.alignment.group_size, job.seed) == (6, 4, 7)
    assert job.tokenizer.channels == (96, 128)
    assert job.name == "top"


def test_values_that_are_mappings_are_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "cluster: {rollout: {workers: 3, resources: {arm: 1, eye: 1}}}\n")
    top = write(tmp_path, "top.yaml", "extends: base.yaml\ncluster: {rollout: {resources: {arm: 2}}}\n")
    rollout = load_job(top).cluster.rollout
    assert (rollout.workers, rollout.resources) == (3, {"arm": 2.0})


def test_parts_of_a_reward_may_be_named_by_module(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base.yaml",
        "reward: {fidelity: {weight: 5}, my_pkg.rewards:Mine: {weight: 1, sizes: [1, 2]}}\n",
    )
    top = write(tmp_path, "top.yaml", "extends: base.yaml\nreward: {'a:b': {weight: 2, deep: {er: 3}}}\n")
    job = load_job(top, ["reward.my_pkg.rewards:Mine.weight=0.5", "reward.judged.weight=0"])
    mine, other = (job.reward.parts[name] for name in ("my_pkg.rewards:Mine", "a:b"))
    assert isinstance(mine, ExtensionRewardConfig)
    assert isinstance(other, ExtensionRewardConfig)
    assert (mine.weight, mine.settings) == (0.5, {"sizes": (1, 2)})
    assert (other.weight, other.settings) == (2.0, {"deep": {"er": 3}})
    assert list(job.reward.parts) == ["fidelity", "my_pkg.rewards:Mine", "a:b"]
    assert load_job(write(tmp_path, "again.yaml", dump_yaml(job))) == job


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005", "5E-05"])
def test_every_way_of_writing_a_small_number(text: str) -> None:
    assert load_job("demo", [f"alignment.learning_rate={text}"]).alignment.learning_rate == 5e-5


@pytest.mark.parametrize("word", ["no", "on", "y", "off"])
def test_words_stay_words(word: str) -> None:
    """YAML 1.1 takes these for truth values; here only true and false are."""
    assert load_job("demo", [f"output={word}"]).output == word
    assert load_job("demo", ["evaluation.fvd=true"]).evaluation.fvd is True


MISTAKES = {
    "alignment.update=5": "did you mean 'alignment.updates'?",
    "alignmnt.updates=5": "did you mean 'alignment.updates'?",
    "rollout.refresh.windw=5": "did you mean 'rollout.refresh.window'?",
    "group_size=5": "did you mean 'alignment.group_size'?",
    "learning_rate=1": "or 'inverse_dynamics.training.learning_rate' or 'alignment.learning_rate'",
    "alignment.xyzzy=5": "known keys here: checkpoint_every, checkpoints, clip",
    "alignment.updates=many": "alignment.updates: expected a valid integer, got 'many'",
    "alignment.updates=true": "alignment.updates: expected a valid integer, got True",
    "alignment.updates='5'": "alignment.updates: expected a valid integer, got '5'",
    "alignment.updates=": "alignment.updates: expected a valid integer, got None",
    "alignment.clip=-1": "alignment.clip: expected greater than 0, got -1",
    "alignment.clip=.nan": "alignment.clip: expected a finite number",
    "tokenizer.channels=[96, x]": "tokenizer.channels[1]: expected a valid integer, got 'x'",
    "tokenizer.channels=96": "tokenizer.channels: expected a list, got 96",
    "simulation.camera_lookat=[0, 1]": "simulation.camera_lookat[2]: a value is missing",
    "rollout.refresh.policy=sww": "expected 'none', 'swr'",
    "tokenizer=3": "tokenizer is a section",
    "seed.more=3": "seed: expected a valid integer",
    "tokenizer.width=60": "64x60 is not divisible",
    "alignment.minibatch_prompts=3": "not a multiple of minibatch_prompts 3",
    "alignment.updates=1000000000000000000000": "alignment.updates: expected an integer of at most 64 bits",
    "cluster.rollout.num_cpus=0.00001": "cluster.rollout.num_cpus: 1e-05 is less than Ray counts",
    "cluster.scorer.resources={spot: 0.00001}": "cluster.scorer.resources.spot: 1e-05 is less than Ray counts",
    "cluster.scorer.resources={spot: -1}": "cluster.scorer.resources.spot: expected greater than or equal to 0",
    "cluster.scorer.resources={'': 1}": "cluster.scorer.resources",
    "cluster.scorer.resources={CPU: 0.1}": "CPU is no custom resource; set num_cpus",
    "cluster.scorer.resources={GPU: 1}": "GPU is no custom resource; set num_gpus",
    "cluster.scorer.resources={memory: 1}": "memory is no custom resource",
    "cluster.learner.accelerator_type=''": "cluster.learner.accelerator_type",
    "cluster.rollout.workers=1000000000": "expected less than or equal to 10000",
    "cluster.rollout.threads=1000000": "expected less than or equal to 1024",
    "cluster.object_store_gb=0.01": "cluster.object_store_gb: expected greater than or equal to 0.08",
    "reward.weights.judged=0": "unknown key 'reward.weights'; every part has its own: reward: {fidelity: {weight: 5}",
    "reward.fidelty.weight=1": "unknown key 'reward.fidelty'; did you mean 'reward.fidelity.weight'?",
    "reward.fidelity.wieght=1": "did you mean 'reward.fidelity.weight'?",
    "reward={fidelity: {weight: 0}, judged: {weight: 0}}": "reward: no part has a weight above 0",
    "reward.my_pkg.rewards:Mine=3": "reward.my_pkg.rewards:Mine is a section, not a value; set weight",
    "reward.my_pkg.rewards:Mine.weight=-1": "reward.my_pkg.rewards:Mine.weight: expected greater than or equal to 0",
    "reward.my_pkg.rewards:Mine.scale=2": "reward.my_pkg.rewards:Mine.weight: a value is missing",
    "reward.my_pkg.rewards.Mine.weight=1": "unknown key 'reward.my_pkg'",
    "alignment.updates": "is not key=value",
    "=5": "is not key=value",
    "alignment..updates=5": "is not key=value",
    "alignment.updates=[1": "not valid YAML",
    "extends=other": "extends belongs in a profile file",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_wrong_override_is_told_in_one_line(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("demo", [override])
    assert MISTAKES[override] in str(caught.value)
    assert "\n" not in str(caught.value)


FILES = {
    "alignment:\n  updatess: 5\n": ":2: unknown key 'alignment.updatess'; did you mean 'alignment.updates'?",
    "seed: 1\nalignment:\n  updates: soon\n": ":3: alignment.updates: expected a valid integer",
    "seed: 1\nseed: 2\n": ":2: key 'seed' stands twice",
    "alignment: {updates: 5\n": "is not valid YAML",
    "- a\n- b\n": "holds no mapping",
    "alignment:\n": ":1: alignment is a section",
    "extend: demo\n": "did you mean 'extends'?",
    "extends: 5\n": ":1: extends is 5",
    "extends: dmeo\n": ":1: unknown profile 'dmeo'; did you mean 'demo'?",
    "extends: nowhere.yaml\n": ":1: no such profile file",
}


@pytest.mark.parametrize("text", FILES)
def test_a_wrong_file_is_told_with_its_line(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, "job.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert FILES[text] in str(caught.value)
    assert str(caught.value).startswith(path)


def test_an_error_names_the_file_it_came_from_through_extends(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", "seed: 1\nalignment: {clip: wide}\n")
    top = write(tmp_path, "top.yaml", "extends: base.yaml\n")
    with pytest.raises(ConfigError, match=r"alignment\.clip") as caught:
        load_job(top)
    assert str(caught.value).startswith(f"{base}:2")


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_circles_of_extends_are_named(links: dict[str, str], tmp_path: Path) -> None:
    for name, base in links.items():
        write(tmp_path, f"{name}.yaml", f"extends: {base}.yaml\n")
    with pytest.raises(ConfigError, match="extends runs in a circle"):
        load_job(str(tmp_path / "a.yaml"))


def test_a_profile_of_ones_own_may_extend_a_packaged_one(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "mine.yaml", "extends: single_gpu\nseed: 3\n"))
    assert (job.name, job.seed) == ("mine", 3)
    assert job.alignment == load_job("single_gpu").alignment


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_job(write(tmp_path, "empty.yaml", "# nothing\n")) == JobConfig(name="empty")


LEAVES = [path for path in known_paths() if not any(other.startswith(f"{path}.") for other in known_paths())]


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab1 -", max_size=5)
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text("abc", min_size=1), SCALARS, max_size=2)
)


@settings(max_examples=80, deadline=None)
@given(path=st.sampled_from(LEAVES), value=VALUES)
def test_any_value_loads_exactly_or_is_refused_by_name(path: str, value: object) -> None:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    if parse_override(f"x={text}")[1] != value:
        return  # NaN is not equal to itself
    try:
        loaded: object = load_job("demo", [f"{path}={text}"]).model_dump(mode="json")
    except ConfigError as caught:
        refusal = str(caught)
    else:
        for part in path.split("."):
            loaded = loaded[part]  # type: ignore[index]
        assert loaded == value
        return
    assert path.split(".")[0] in refusal
    assert "\n" not in refusal


def test_config_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, roboalign_ray.config.loading as loading; loading.load_job('paper_rt1', ['seed=1'])\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{this}: &{this} [{','.join(['*' + before] * 9)}]\n"
    for before, this in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "stands for more than 20000 values"),
        ("seed: &a [*a]\n", "nested more than 40 deep"),
        ("judge: &a {b: *a}\n", "nested more than 40 deep"),
        ("seed: " + "[" * 5000 + "]" * 5000, "nested more than 40 deep"),
        ("seed: " + "9" * 5000, "cannot be read"),
        ("seed: 2024-13-45\n", "cannot be read"),
        ("a: " + "x" * 300_000, "longer than"),
        ("<<: &a {<<: *a}\n", "nested more than 40 deep"),
        ("seed: !!python/object/apply:os.system [echo]\n", "is not valid YAML"),
    ],
)
def test_a_profile_that_is_an_attack_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    """Aliases within aliases stand for billions of values, an anchor in itself for ever more."""
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        load_job(str(path))
    assert "\n" not in caught.value.line()
    assert len(caught.value.line()) < 500


def test_an_override_that_is_an_attack_is_one_line() -> None:
    with pytest.raises(ConfigError, match="nested more than 40 deep"):
        load_job("demo", ["seed=" + "[" * 3000 + "]" * 3000])


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\nseed: &s 7\njudge: {seed: *s}\n")
    assert load_job(str(path)).judge.seed == 7
