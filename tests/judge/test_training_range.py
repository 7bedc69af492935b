"""What a judge was trained on: against closed forms, on the shipped pairs, and from damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_clips import made_clip

from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.student.training_range import (
    FILE,
    STATISTICS,
    TrainingRange,
    clip_statistics,
    fit_training_range,
)
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.cluster.weight_folders import replay_folder, student_folder

CONFIG = load_job("demo")
RANGES = {"frames": (4.0, 13.0), "fps": (5.0, 5.0), "aspect": (1.0, 1.0)}


def still(colour: tuple[int, int, int], frames: int = 6) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (frames, 64, 64, 1))


def test_statistics_are_what_they_are_called() -> None:
    clip = still((255, 0, 51))
    clip[:, :32, :32] = (0, 255, 51)  # one quarter
    found = clip_statistics(clip)
    assert found.shape == (STATISTICS,)
    red, green, blue = found[:12].reshape(3, 4)
    np.testing.assert_allclose(red, [0, 1, 1, 1])
    np.testing.assert_allclose(green, [1, 0, 0, 0])
    np.testing.assert_allclose(blue, [0.2] * 4, atol=1e-5)
    share = np.sqrt(3 / 16 * 64**2 / (64**2 - 1))  # of a quarter, as a sample's deviation
    np.testing.assert_allclose(found[12:15], [share, share, 0], atol=1e-5)
    # The quarter's edges: half of two of 63 steps in either direction, in two of three channels.
    np.testing.assert_allclose(found[15], np.log(0.5 / 63 * 2 / 3 + 1e-3) / 4, atol=1e-5)
    np.testing.assert_allclose(found[16], np.log(1e-3) / 4, atol=1e-5)  # nothing moves
    moving = np.concatenate([still((0, 0, 0), 1), still((255, 255, 255), 1)])
    np.testing.assert_allclose(clip_statistics(moving)[16], np.log(0.5 + 1e-3) / 4, atol=1e-5)


def test_the_distance_is_mahalanobis_and_every_clause_has_its_cause() -> None:
    clip = still((100, 100, 100))
    mean = clip_statistics(clip)
    known = TrainingRange(mean, np.diag(np.full(STATISTICS, 4.0)), 0.5, RANGES, 100)
    assert known.compare(clip, 5.0).outside == ()
    assert known.compare(clip, 5.0).distance == 0
    lighter = still((110, 100, 100))
    expected = 2 * np.linalg.norm(clip_statistics(lighter) - mean) / 0.5
    assert known.compare(lighter, 5.0).distance == pytest.approx(expected)
    assert expected < 1
    for other, fps, word in (
        (still((255, 100, 100)), 5.0, "frames look unlike"),
        (still((100, 100, 100), 3), 5.0, "number of frames 3 (training clips: 4 to 13)"),
        (clip, 30.0, "frame rate 30 (training clips: 5)"),
        (clip[:, :32], 5.0, "width by height 2 (training clips: 1)"),
    ):
        [clause] = known.compare(other, fps).outside
        assert word in clause


def test_the_shipped_student_knows_its_own_clips_from_others() -> None:
    known = TrainingRange.load(student_folder(CONFIG))
    assert known is not None
    pairs = LabelledPairs([replay_folder(CONFIG)])
    held_out = pairs.split("held_out", CONFIG.judge.distillation.held_out_fraction)[::8]
    own = [known.compare(pair.frames, pair.fps) for pair in (pairs.read(int(n)) for n in held_out)]
    assert np.mean([bool(seen.outside) for seen in own]) < 0.1
    for other in (still((128, 128, 128), 12), np.zeros((12, 64, 64, 3), np.uint8), made_clip()[0]):
        assert known.compare(other, 5.0).distance > 1


def test_it_is_written_by_a_command_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = str(replay_folder(CONFIG))
    assert run(["assets", "range", str(tmp_path), "--pairs", pairs, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranges"]["fps"] == [5.0, 5.0]
    made = TrainingRange.load(tmp_path)
    assert made is not None
    assert (made.pairs, made.bound) == (told["pairs"], pytest.approx(told["bound"]))
    train = LabelledPairs([pairs]).split("train", 0.1)[::7]
    seen = [
        made.compare(pair.frames, pair.fps) for pair in (LabelledPairs([pairs]).read(int(n)) for n in train)
    ]
    assert np.mean([one.distance <= 1 for one in seen]) > 0.9
    assert run(["assets", "range", str(tmp_path / "absent"), "--pairs", pairs]) == 2


def test_too_few_pairs_make_no_range() -> None:
    few = LabelledPairs([replay_folder(CONFIG)])
    assert fit_training_range(few, 1e-9) is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"format": 1}',
        '{"format": 2, "mean": 2}',
        '{"mean": [1], "precision": [[1]], "bound": 1, "pairs": 1, "format": 1, "ranges": {}}',
        '{"mean": NaN}',
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(UserError, match="cannot be read") as raised:
        TrainingRange.load(tmp_path)
    assert "roboalign assets range" in raised.value.line()


def test_a_range_of_wrong_numbers_is_refused(tmp_path: Path) -> None:
    sound = json.loads((student_folder(CONFIG) / FILE).read_text())
    for key, value in (
        ("bound", 0),
        ("bound", 1e400),
        ("mean", [1.0] * 3),
        ("precision", [[0.0]]),
        ("format", 9),
    ):
        (tmp_path / FILE).write_text(json.dumps(sound | {key: value}))
        with pytest.raises(UserError, match="cannot be read"):
            TrainingRange.load(tmp_path)
    assert TrainingRange.load(tmp_path / "absent") is None
