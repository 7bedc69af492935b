"""What a judge's picks are worth: nobody's beat measurement's own, and the same model changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from judged_job import labelled_episode, make_judged_job
from tiny_job import EPISODES

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.store import write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import names
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.cluster.weight_folders import world_model_folder
from roboalign_ray.pipelines.evaluate import best_of_n_study as judge_select
from roboalign_ray.pipelines.evaluate.best_of_n_study import (
    MEASUREMENT,
    Rollouts,
    models_table,
    run_select,
    selection_table,
    summary,
    together,
    write_selection,
)

WINDOWS, SAMPLES = 3, 4
NOTHING = {"mean": 0.0, "low": 0.0, "high": 0.0}
# By the usual limits an untrained model's pictures are worth nothing, one like the other.
LENIENT = dict.fromkeys(("flicker_limit", "jump_limit", "background_limit", "region_floor"), 1000.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The toy job's student's picks, and its own model measured beside itself, once and as if of two seeds."""
    job = make_judged_job(
        tmp_path_factory.mktemp("job"),
        evaluation={"judged_windows": WINDOWS, "judges": ("student", "privileged")},
        bench={"privileged": LENIENT},
    )
    model = world_model_folder(job)
    return run_select(job, samples=SAMPLES, models={"same": [model], "twice": [model, model]}, quiet=True)


def test_no_pick_is_better_than_measurements_own(found) -> None:
    told = found
    judges = told["judges"]
    assert {"student", "SSIM", MEASUREMENT} < judges.keys()
    assert len(judges) == 4  # LPIPS, whatever its network is called
    assert (told["windows"], told["samples"]) == (WINDOWS, SAMPLES)
    best = judges[MEASUREMENT]
    for row in judges.values():
        assert row["gain"]["mean"] == pytest.approx(row["total"] - told["blind"]["total"])
        assert row["total"] == pytest.approx(sum(row[name] for name in names()))
        assert row["total"] <= best["total"]
        assert row["failed"] == 0
    assert best["rank"]["mean"] == pytest.approx(1.0)
    assert best["gain"]["mean"] > 0 < told["spread"]["within"]


def test_a_model_beside_itself_changes_nothing(found) -> None:
    assert {"gripper", "object", "background", "sharpness"} < found["shares"].keys()
    for model in ("same", "twice"):
        for row in found["shares"].values():
            assert 0 <= row["base"] <= 1
            assert row["changes"][model] == pytest.approx(NOTHING)
        beside = found["models"][model]
        assert beside["gain"] == beside["behind_first"] == pytest.approx(NOTHING)
        assert {name: beside[name] for name in found["blind"]} == pytest.approx(found["blind"])


def test_tables_hold_what_was_told(found, tmp_path: Path) -> None:
    told = found
    write_selection(told, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "selection.json").read_text()) == told
    text = (tmp_path / "out" / "selection.md").read_text()
    assert text == f"{selection_table(told)}\n{models_table(told)}"
    for name in told["judges"]:
        assert f"\n| {name} | " in text
    assert "| Measured share | base | same | twice |" in text
    assert "| lead of same |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {12, 11, 5}


def test_gains_are_those_of_the_picks() -> None:
    """Measured points 0 to 3 in the first dimension; one judge likes them in that order, another backwards."""
    points = np.zeros((2, 4, 6))
    points[:, :, 0] = np.arange(4)
    points[1, 3] = np.nan  # not measured: neither in the mean nor in the ranks
    rollouts = Rollouts(points)
    total = points.sum(axis=-1)
    rollouts.liked = {"good": np.where(np.isfinite(total), total, -1.0), "bad": -total, MEASUREMENT: total}
    rollouts.liked |= {"indifferent": np.ones((2, 4)), "silent": np.full((2, 4), np.nan)}
    told = summary(rollouts, {})
    assert told["judges"]["indifferent"]["rank"]["mean"] is None  # JSON knows no NaN
    assert told["judges"]["indifferent"]["total"] == 0.0  # of equals the first
    assert f"| silent |{' – |' * 9} 8 |" in selection_table(told)
    assert told["blind"]["total"] == pytest.approx((1.5 + 1.0) / 2)
    assert told["judges"]["good"]["total"] == told["judges"][MEASUREMENT]["total"] == pytest.approx(2.5)
    assert told["judges"]["bad"]["gain"]["mean"] == pytest.approx(-1.25)
    assert told["judges"]["good"]["rank"]["mean"] == pytest.approx(1.0)
    assert told["judges"]["bad"]["rank"]["mean"] == pytest.approx(-1.0)
    assert told["spread"]["between"] == pytest.approx(0.25)


def test_a_window_that_cannot_be_measured_is_left_out_and_told() -> None:
    points = np.ones((3, 2, 6))
    points[1] = np.nan
    points[2, 0] = np.nan
    base = Rollouts(points, {"outcome": np.full((3, 2), 0.5)}, {MEASUREMENT: points.sum(axis=-1)})
    better = Rollouts(points + 1, {"outcome": np.full((3, 2), 0.75)})
    told = summary(base, {"one": together([better, better]), "other": base})
    assert (told["windows"], told["unmeasured_windows"]) == (2, 1)
    assert told["models"]["one"]["gain"]["mean"] == pytest.approx(6.0)
    assert told["models"]["other"]["behind_first"]["mean"] == pytest.approx(6.0)
    assert told["shares"]["outcome"]["changes"]["one"]["mean"] == pytest.approx(0.25)
    assert told["judges"][MEASUREMENT]["failed"] == 1
    assert "Left out: 1 windows" in selection_table(told)


def test_without_contacts_nothing_can_be_measured(tmp_path: Path) -> None:
    job = make_judged_job(
        tmp_path, evaluation={"judged_windows": WINDOWS, "judges": ("student", "privileged")}
    )
    untold = map(without_contacts, range(EPISODES))
    write_store(untold, tmp_path / "store", held_out_fraction=0.3, overwrite=True)
    with pytest.raises(UserError, match="no rollout can be measured"):
        run_select(job, samples=2, quiet=True)


def without_contacts(number: int) -> Episode:
    episode = labelled_episode(number)
    assert episode.outcome is not None
    told = {name: label for name, label in episode.outcome.privileged.items() if name != "contact"}
    return replace(episode, outcome=replace(episode.outcome, privileged=told))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--model", "{here}/nowhere"), "no such world model folder"),
        (("--model", "judged={here}/nowhere"), "no such world model folder"),
        (("--model", "{here}/empty"), "holds no layout.json"),
        (("--out", "{here}/file"), "is a file, not a folder"),
        (("--samples", "1"), "greater than or equal to 2"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys, more: tuple[str, ...], line: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert run(["judge", "select", "--quiet", *(part.format(here=tmp_path) for part in more)]) == 2
    said = capsys.readouterr().err
    assert line in " ".join(said.split())
    assert len(said.strip().splitlines()) == 1


def test_folders_are_named_and_may_hold_the_sign_themselves(tmp_path: Path, monkeypatch) -> None:
    asked: dict = {}
    monkeypatch.setattr(judge_select, "run_select", lambda config, **how: asked.update(how) or {})
    plain, signed = tmp_path / "plain", tmp_path / "rate=1"
    for folder in (plain, signed):
        folder.mkdir()
    given = [str(signed), f"two={plain}", f"two={signed}"]
    words = [word for model in given for word in ("--model", model)]
    assert run(["judge", "select", "--json", *words]) == 0
    assert asked["models"] == {str(signed): [signed], "two": [plain, signed]}
