"""Groups that the actors made, called one after the other, come out of a replay bit for bit, or it says why not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_job import make_tiny_job

from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.alignment.records.journal import Verdict
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.weight_sync.packing import pack, unpack
from roboalign_ray.pipelines.align.groups import Numbering
from roboalign_ray.pipelines.align.replay import run_replay
from roboalign_ray.pipelines.cli import main as cli
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.token.transformer import load_pretrained, save_pretrained

CALLS = {0: [(0, 1), (2, 3)], 1: [(4, 5, 6), (7,)]}  # groups rolled out together, by version


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    rounded = {"weights": {"precision": "bfloat16"}}  # replay has to know how weights travelled
    return make_tiny_job(tmp_path_factory.mktemp("job"), asynchrony=rounded)


@pytest.fixture(scope="module")
def run(job, tmp_path_factory) -> Path:
    """Two updates of four groups: the second one's weights are the first one's, moved, and kept in a checkpoint."""
    out = tmp_path_factory.mktemp("run")
    folder = Path(job.world_model_weights)
    travel = job.asynchrony.weights
    rollout = RolloutActor(folder, job.rollout, job.episodes)
    scorer = ScorerActor(folder, job.reward, job.episodes)
    model, layout = load_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    metadata = {"config": job.model_dump(mode="json")}
    checkpoints.save(
        out / "checkpoints",
        1,
        lambda place: save_pretrained(model, layout, place / "model"),
        metadata=metadata,
    )
    schedule = schedule_from_store(job.episodes, job.rollout, job.seed)
    numbering = Numbering(schedule, job.alignment.prompts_per_update, job.alignment.group_size)
    lines = []
    for version, calls in CALLS.items():
        if version:
            rollout.load_weights(version, unpack(*pack(model.state_dict(), version, travel)))
        for numbers in calls:
            lines += rolled_out(numbering, numbers, rollout, scorer, version)
    write(out, lines)
    return out


def rolled_out(numbering, numbers, rollout, scorer, update) -> list[dict]:
    """Journal lines of groups made in one call; those of one horizon are one batch."""
    tickets = [numbering.ticket(number, 1) for number in numbers]
    groups, _ = rollout.rollout([t.name for t in tickets], [t.seeds for t in tickets])
    *_, records = scorer.score(groups)
    lines = []
    for ticket, record in zip(tickets, records, strict=True):
        together = tuple(t.number for t in tickets if t.name.horizon == ticket.name.horizon)
        line = replace(record, together=together).as_json()
        lines.append({"update": update, "group": ticket.number, **line})
    return lines


def write(run: Path, lines: list[dict]) -> None:
    (run / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_every_group_is_made_again_bit_for_bit(run, job):
    result = run_replay(job, run, quiet=True)
    assert [c.group.group for c in result.compared] == list(range(8))
    assert {c.verdict for c in result.compared} == {Verdict.EQUAL}
    assert result.equal
    assert [(row["versions"], row["groups"]) for row in result.rows()] == [("0 0", 4), ("1 1", 4)]


def test_groups_of_their_own_length_are_made_again_bit_for_bit(job, tmp_path):
    horizons = {"shape": "uniform", "least": 1}
    settings = job.model_dump(mode="json")
    job = JobConfig.model_validate(settings | {"rollout": settings["rollout"] | {"horizons": horizons}})
    folder = Path(job.world_model_weights)
    rollout = RolloutActor(folder, job.rollout, job.episodes)
    scorer = ScorerActor(folder, job.reward, job.episodes)
    schedule = schedule_from_store(job.episodes, job.rollout, job.seed)
    numbering = Numbering(schedule, job.alignment.prompts_per_update, job.alignment.group_size)
    lines = rolled_out(numbering, range(8), rollout, scorer, 0)
    lengths = [numbering.ticket(number, 1).name.horizon for number in range(8)]
    assert len(set(lengths)) > 2
    assert max(lengths) > job.rollout.refresh.window
    assert [line["units"] for line in lines] == [
        length * 3 * 4 for length in lengths
    ]  # G = 3, 4 tokens a frame
    assert [len(line["versions"]) for line in lines] == [-(-length // 2) for length in lengths]
    write(tmp_path, lines)
    result = run_replay(job, tmp_path, quiet=True)
    assert len(result.compared) == 8
    assert {c.verdict for c in result.compared} == {Verdict.EQUAL}


def test_whole_calls_are_made_until_there_are_enough(run, job):
    assert [c.group.group for c in run_replay(job, run, groups=3, quiet=True).compared] == [0, 1, 2, 3]


def test_other_scores_and_weights_that_are_gone_are_told(copy, job, tmp_path, capsys):
    lines = journal(copy)
    lines[1]["scores"][0]["total"] += 0.125
    write(copy, lines)
    shutil.rmtree(copy / "checkpoints")
    profile = tmp_path / "job.yaml"
    profile.write_text(job.model_dump_json())
    command = ["align", str(profile), "--replay", str(copy), "--quiet"]
    assert cli.run([*command, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] is False
    old, new = told["rows"]
    assert (old["equal"], old["differs"], old["gone"]) == (3, 1, 0)
    assert old["difference"] == pytest.approx(0.125)
    assert (new["equal"], new["differs"], new["gone"], new["difference"]) == (0, 0, 4, None)
    assert cli.run(command) == 1
    assert "no weights of version 1" in " ".join(capsys.readouterr().out.split())
    assert cli.run([*command, "--set", "telemetry.tolerance=0.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["close"] == 1


def test_other_weights_give_other_scores(copy, job):
    damaged = copy / "checkpoints" / "step-00000001" / "model"
    shutil.copy(Path(job.world_model_weights) / "model.safetensors", damaged)
    with pytest.raises(UserError, match="checksum"):
        run_replay(job, copy, quiet=True)
    shutil.rmtree(copy / "checkpoints")
    save_pretrained(*load_pretrained(job.world_model_weights), damaged)
    metadata = {"config": job.model_dump(mode="json")}

    def write_again(folder: Path) -> None:
        shutil.copytree(damaged, folder / "model")

    checkpoints.save(copy / "checkpoints", 1, write_again, metadata=metadata)
    rows = run_replay(job, copy, quiet=True).rows()
    assert (rows[0]["equal"], rows[1]["differs"]) == (4, 4)


def test_a_replay_with_other_settings_is_refused(copy, job, tmp_path):
    other = job.model_copy(update={"seed": 9})
    with pytest.raises(UserError, match=r"another value of seed; replay with the profile"):
        run_replay(other, copy, quiet=True)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="another prompt or other seeds"):
        run_replay(other, copy, quiet=True)
    with pytest.raises(UserError, match="no journal"):
        run_replay(job, tmp_path / "nothing", quiet=True)


def test_options_that_exclude_each_other_are_told(capsys):
    assert cli.run(["align", "demo", "--replay", "runs/x", "--resume"]) == 2
    assert cli.run(["align", "demo", "--groups", "3"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
