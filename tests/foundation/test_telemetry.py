"""What is written is read back: through JSON, and through TensorBoard's own event reader."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roboalign_ray.foundation.telemetry.metrics import JSONL, MetricsWriter, read_curves, read_rows


def _board(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return reader


def test_scalars_reach_json_and_tensorboard(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in range(3):
            writer.scalars(step, {"reward/mean": step / 4, "kl": 0.5})
        writer.text(0, "settings", "**seed** 3")
    steps, values = read_curves(tmp_path)["reward/mean"]
    np.testing.assert_array_equal(steps, [0, 1, 2])
    np.testing.assert_array_equal(values, [0, 0.25, 0.5])
    board = _board(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("reward/mean")] == [
        (0, 0),
        (1, 0.25),
        (2, 0.5),
    ]
    assert any("settings" in tag for tag in board.Tags()["tensors"])


def test_animation_is_a_gif_with_every_frame(tmp_path: Path) -> None:
    frames = np.zeros((5, 16, 24, 3), np.uint8)
    for index in range(5):
        frames[index, :, index] = 255
    with MetricsWriter(tmp_path) as writer:
        writer.animation(7, "rollout", frames)
    (event,) = _board(tmp_path).Images("rollout")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, picture.n_frames, picture.size) == (7, 5, (24, 16))
    picture.seek(3)
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), frames[3])


def test_settings_stand_in_tensorboard_as_they_are(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.settings(0, "seed: 3\n")
        writer.settings(4, "seed: 5\n")
    told = _board(tmp_path).Tensors("profile/text_summary")
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in told]
    assert texts == [(0, "```yaml\nseed: 3\n\n```"), (4, "```yaml\nseed: 5\n\n```")]


def test_torn_line_is_dropped_and_writing_goes_on(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.scalars(0, {"loss": 1.0})
    with (tmp_path / JSONL).open("a") as file:
        file.write('{"step": 1, "lo')
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.scalars(1, {"loss": 0.5})
    assert [row["loss"] for row in read_rows(tmp_path)] == [1.0, 0.5]


def test_resumed_run_drops_what_it_will_write_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in range(5):
            writer.scalars(step, {"loss": float(step)})
    with MetricsWriter(tmp_path, resume_at=3) as writer:
        writer.scalars(3, {"loss": 30.0})
    steps, values = read_curves(tmp_path)["loss"]
    np.testing.assert_array_equal(steps, [0, 1, 2, 3])
    np.testing.assert_array_equal(values, [0, 1, 2, 30])
    assert [event.value for event in _board(tmp_path).Scalars("loss")] == [0, 1, 2, 30]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_valid_json(tmp_path: Path, value: float) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.scalars(0, {"loss": value})
        writer.close()
    line = (tmp_path / JSONL).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["loss"] is None
    assert np.isnan(read_curves(tmp_path)["loss"][1]).all()


def test_no_run_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    assert read_curves(tmp_path) == {}
