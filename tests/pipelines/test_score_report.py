"""The page of a folder of scores, parsed: best and worst clips as videos that play, and reasons grouped."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from scored_clips import good_clip, write_clip

from roboalign_ray.episodes.video import decode_video
from roboalign_ray.judge.data.score_record import JudgeIdentity, ScoringRecord
from roboalign_ray.judge.data.score_store import (
    SCORES,
    ScoreSet,
    score_row,
    write_quarantine,
)
from roboalign_ray.judge.protocol import Judgement
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.label.clip_reader import ClipReader, ReadClip
from roboalign_ray.pipelines.label.clips import ClipInput, list_clips

JUDGE = JudgeIdentity("student", 3, "a" * 64, {})


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Scores of nine clips, better from one to the next, and three clips without."""
    for number in range(9):
        write_clip(tmp_path / "clips" / f"v{number}.mp4", good_clip(number))
    source = ClipInput(str(tmp_path / "clips"))
    reader, rows = ClipReader(source, 2**24), []
    for number, clip in enumerate(list_clips(source)):
        read = reader.read(clip)
        assert isinstance(read, ReadClip)
        judgement = Judgement(np.full(6, number / 10), np.full(6, 0.1), rationale=f"<b>reason {number}</b>")
        about = {
            "clip_id": clip.clip_id,
            "input_sha256": read.sha256,
            "instruction": "open it",
            "stamp": clip.stamp,
        }
        rows.append(score_row(judgement, JUDGE, **about, frames=6, fps=5.0, decode_seconds=0.0, seconds=0.0))
    out = tmp_path / "out"
    out.mkdir()
    ScoringRecord(source.place, "", "", [JUDGE]).write(out)
    ScoreSet(out / SCORES).append(rows)
    write_quarantine(out, {"x/a.mp4": "x/a.mp4: torn", "b.mp4": "b.mp4: torn", "c.mp4": "c.mp4: empty"})
    return out


def figures(page: str) -> list[tuple[str, str]]:
    """Clip and content of each figure, in order."""
    return re.findall(r'<figure data-clip="([^"]+)">(.*?)</figure>', page, re.DOTALL)


def test_the_best_and_the_worst_clips_play_with_their_reasons(scored: Path) -> None:
    assert run(["score", "report", str(scored), "--clips", "3"]) == 0
    page = (scored / "report.html").read_text()
    assert [name for name, _ in figures(page)] == [f"v{n}.mp4" for n in (8, 7, 6, 0, 1, 2)]
    for name, content in figures(page):
        number = int(name[1])
        assert f"&lt;b&gt;reason {number}&lt;/b&gt;" in content
        values = [float(value) for value in re.findall(r'data-value="([0-9.e-]+)"', content)]
        np.testing.assert_allclose(values, [number / 10] * 6 + [6 * number / 10], rtol=1e-5, atol=1e-6)
        [video] = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", content)
        shown = decode_video(base64.b64decode(video))
        wanted = decode_video(scored.parent / "clips" / name).repeat(4, axis=1).repeat(4, axis=2)
        assert np.abs(shown.astype(int) - wanted).mean() < 12
    assert page.count('class="histogram"') == len(DIMENSIONS) + 1
    assert re.search(r">torn</th><td[^>]*>2</td>", page)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_a_clip_that_is_gone_or_changed_is_told(scored: Path) -> None:
    (scored.parent / "clips" / "v8.mp4").unlink()
    write_clip(scored.parent / "clips" / "v0.mp4", good_clip(77))
    assert run(["score", "report", str(scored), "--clips", "1"]) == 0
    best, worst = (content for _, content in figures((scored / "report.html").read_text()))
    assert "no longer in the input" in best
    assert "has changed since it was scored" in worst
    assert "<video" not in best + worst


def test_few_clips_stand_once(scored: Path) -> None:
    assert run(["score", "report", str(scored), "--clips", "7"]) == 0
    names = [name for name, _ in figures((scored / "report.html").read_text())]
    assert sorted(names) == [f"v{n}.mp4" for n in range(9)]


def test_a_folder_without_scores_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no scores here" in refused(["score", "report", str(tmp_path)], tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent", "out"], "no such folder, file or store"),
        (["clips", "out", "--judge", "teacher", "--set", "teacher.model={}/none"], "none"),
        (["clips", "out", "--set", "judge.weights={}/none"], "none"),
        (["clips", "out", "-i", "  "], "is empty"),
        (["clips", "clips/out"], "lies inside INPUT"),
        (["clips", "out", "--set", "scoring.decode_cpus=1000"], "the job cannot be placed: scoring"),
    ],
)
def test_what_cannot_begin_is_one_line(
    words: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clips" / "a.mp4", good_clip(0))
    assert line in refused(["score", *(word.format(tmp_path) for word in words)], tmp_path, capsys)
