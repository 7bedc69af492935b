"""The report is parsed as a browser would: its parts are there, its numbers are those given, nothing is external."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.config import JobConfig, RefreshConfig
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.evaluation import plots
from roboalign_ray.evaluation.protocols import EvaluationWindow
from roboalign_ray.evaluation.report import (
    Comparison,
    EpisodeClip,
    ReportData,
    ScorePair,
    Table,
    compare,
    episode_clips,
    frame_curves,
    method_table,
    one_step_table,
    paired_table,
    policy_curves,
    write_report,
)
from roboalign_ray.evaluation.report.data import JudgedClip, JudgedSection
from roboalign_ray.evaluation.report.html import curve_title, number
from roboalign_ray.evaluation.report.tiles import tile
from roboalign_ray.evaluation.results import LongHorizonResult, MetricCurves, OneStepResult, PolicyResult
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt

EPISODES, FRAMES = 8, 12
METRICS = ("psnr", "ssim", "lpips", "roi_lpips", "mse")


class Page(HTMLParser):
    """Collects what the tests ask for."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sections: list[str] = []
        self.videos: list[str] = []
        self.rows: dict[str, list[float]] = {}
        self.text: list[str] = []
        self._row = ""
        self._open: list[str] = []
        self.balanced = True
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag not in self.VOID:
            self._open.append(tag)
        self.links += [values[key] for key in ("src", "href", "poster", "data") if key in values]
        if tag == "section":
            self.sections.append(values.get("id") or values.get("class", ""))
        if tag == "video":
            self.videos.append(values["src"])
        if tag == "tr":
            self._row = values.get("data-metric") or values.get("data-policy") or ""
        if tag == "td" and self._row and "data-value" in values:
            self.rows.setdefault(self._row, []).append(float(values["data-value"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """SVG shapes close themselves."""

    def handle_endtag(self, tag: str) -> None:
        self.balanced &= bool(self._open) and self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _curves(gain: float) -> MetricCurves:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (EPISODES, FRAMES))
    signs = {"psnr": 1, "ssim": 1, "lpips": -1, "roi_lpips": -1, "mse": -1}
    return MetricCurves(
        {name: 1.0 + noise + signs[name] * gain for name in METRICS},
        np.full(EPISODES, 0.1),
        np.full(EPISODES, 0.9),
        resamples=200,
    )


def _clip(seed: int) -> EpisodeClip:
    rng = np.random.default_rng(seed)
    shades = rng.integers(0, 256, (4, FRAMES, 1, 1, 3), dtype=np.uint8)
    names = ("context", "real", "before", "after")
    panels = {
        name: np.broadcast_to(s[:, None], (FRAMES, 1, 32, 48, 3))
        for name, s in zip(names, shades, strict=True)
    }
    return EpisodeClip(f"episode <{seed}>", panels, "PSNR & more")


def _data(**changes) -> ReportData:
    before, after = _curves(0.0), _curves(0.2)
    steps = np.arange(20)
    settings = {
        "title": "align demo",
        "subject": "GRPO on Meta-World.",
        "comparisons": compare(
            before,
            after,
            rewards={"Reward": ScorePair(np.full(EPISODES, 0.5), np.full(EPISODES, 0.6), scope="5 windows")},
            resamples=200,
        ),
        "windows": EPISODES,
        "episodes": EPISODES,
        "horizon": FRAMES,
        "lpips_label": "LPIPS-alex",
        "lpips_real": True,
        "settings": JobConfig().model_dump(mode="json"),
        "command": "roboalign align demo --set seed=3",
        "seed": 3,
        "versions": {"torch": "2.13.0", "ray": "2.60.0"},
        "hardware": "2 CPU cores",
        "seconds": 200.0,
        "created": "2026-01-01 10:00",
        "learning_curves": {"align/reward": (steps, steps / 20), "align/kl": (steps, np.full(20, np.nan))},
        "frame_curves": {"psnr": {"before": before.curve("psnr"), "after": after.curve("psnr")}},
        "policy_curves": {
            "psnr": {"SWR, W = 6": after.curve("psnr"), "copy first frame": before.curve("psnr")}
        },
        "training_frames": 8,
        "policies": [
            {
                "policy": "SWR, W = 6",
                "psnr": 21.5,
                "psnr_low": 21.0,
                "psnr_high": 22.25,
                "cache_bytes": 2_500_000,
            },
            {"policy": "copy first frame", "psnr": 18.25},
        ],
        "tables": [Table("One step", ["way", "PSNR"], [["true", 27.5]], digits=[None, 2])],
        "clips": [_clip(0), _clip(1)],
        "fps": 4.0,
    }
    return ReportData(**{**settings, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, str]:
    data = _data()
    path = write_report(data, tmp_path_factory.mktemp("run") / "nested" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no draft left behind
    return data, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(written: tuple[ReportData, str]) -> Page:
    return Page(written[1])


def test_every_section_is_there_and_tags_close(page: Page) -> None:
    assert page.balanced
    assert page.sections == [
        "headline", "before-after", "videos", "learning", "frames", "policies", "extra", "reproduce", "settings",
        "measured",
    ]  # fmt: skip


def test_nothing_is_requested_from_outside(written: tuple[ReportData, str], page: Page) -> None:
    assert all(link.startswith(("data:", "#")) for link in page.links)
    text = written[1].replace(JobConfig().teacher.server.url, "")  # stands among the settings, as text
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_table_holds_the_numbers_given(written: tuple[ReportData, str], page: Page) -> None:
    data, _ = written
    assert list(page.rows)[: len(data.comparisons)] == [comparison.name for comparison in data.comparisons]
    for comparison in data.comparisons:
        change = comparison.change
        expected = [comparison.before.mean, comparison.after.mean, change.difference.mean, change.wins]
        assert page.rows[comparison.name] == expected
    assert page.rows["SWR, W = 6"] == [21.5, 2_500_000]
    words = " ".join(page.text)
    for shown in (
        *("0.6000", "was 0.5000", "better by 20.0 %", "±0.75", "2.5", "27.50", "3 min 20 s"),
        "Windows won",
        "8 windows of 8 held-out episodes",
        "bootstrap intervals over episodes",
        "5 windows",
    ):
        assert shown in words, shown


def test_settings_and_reproduction_are_shown(page: Page) -> None:
    words = " ".join(page.text)
    for shown in (
        "roboalign align demo --set seed=3",
        "group_size",
        "levels",
        "7, 5, 5, 5, 5",
        "2 CPU cores",
    ):
        assert shown in words, shown


def test_videos_decode_with_four_panels_in_order(written: tuple[ReportData, str], page: Page) -> None:
    data, _ = written
    assert len(page.videos) == 2
    for uri, clip in zip(page.videos, data.clips, strict=True):
        kind, payload = uri.split(",", 1)
        assert kind == "data:video/mp4;base64"
        frames = decode_video(base64.b64decode(payload))
        scale = 8  # 32 pixels high, enlarged to about 256
        assert frames.shape == (FRAMES, 32 * scale, (4 * 48 + 3) * scale + (4 * 48 + 3) * scale % 2, 3)
        for panel, source in enumerate(clip.panels.values()):
            middle = (panel * 49 + 24) * scale
            shown = frames[:, 128, middle].astype(int)
            assert np.abs(shown - source[:, 0, 16, 24].astype(int)).max() <= 24  # lossy, 4:2:0


def test_views_stand_one_below_the_other() -> None:
    rng = np.random.default_rng(0)
    panels = {name: rng.integers(0, 256, (3, 2, 4, 6, 3), dtype=np.uint8) for name in ("real", "a", "b")}
    tiled = tile(EpisodeClip("both", panels))
    assert tiled.shape == (3, 2 * 4 + 1, 3 * 6 + 2, 3)
    np.testing.assert_array_equal(tiled[:, :4, 7:13], panels["a"][:, 0])
    np.testing.assert_array_equal(tiled[:, 5:, 14:], panels["b"][:, 1])
    assert (tiled[:, 4] == tiled[0, 0, 6]).all()


def test_titles_are_escaped(written: tuple[ReportData, str]) -> None:
    assert "episode &lt;0&gt;" in written[1]
    assert "episode <0>" not in written[1]


def test_random_lpips_is_said_plainly(tmp_path: Path) -> None:
    label = "random-LPIPS-alex (backbone not available)"
    text = write_report(_data(lpips_label=label, lpips_real=False, clips=[]), tmp_path / "r.html").read_text()
    assert text.count(label) == 2
    assert "a random network stands in" in text
    assert "videos" not in Page(text).sections


@pytest.mark.parametrize(
    ("gains", "headline"),
    [
        ((0.2, 0.2), "Alignment helped"),
        ((-0.2, -0.2), "Alignment hurt"),
        ((0.2, -0.2), "Mixed result"),
        ((0.0, 0.0), "No clear change"),
    ],
)
def test_verdict_follows_the_intervals(gains: tuple[float, float], headline: str) -> None:
    rng = np.random.default_rng(0)
    comparisons: list[Comparison] = []
    for gain in gains:
        noise = rng.normal(0, 0.05, (EPISODES, FRAMES))
        noise -= noise.mean()
        frozen = np.full(EPISODES, 0.1)
        after = MetricCurves(dict.fromkeys(METRICS, 1 + noise + gain), frozen, 1 - frozen)
        comparisons += [c for c in compare(_curves(0.0), after, resamples=500) if c.name == "SSIM"]
    assert _data(comparisons=comparisons).verdict()[1] == headline


def test_windows_of_few_episodes_are_called_weak_evidence(tmp_path: Path) -> None:
    many = _data(windows=2 * EPISODES)
    few = _data(windows=2 * EPISODES, episodes=2)
    assert many.verdict()[2].endswith(
        "on 16 windows of 8 held-out episodes, 12 frames each (Reward: 5 windows)."
    )
    assert "16 windows of 2 held-out episodes" in few.verdict()[2]
    assert "weak evidence: fewer than 8 episodes" in few.verdict()[2]
    assert "weak" not in replace(few, comparisons=[]).verdict()[2]  # nothing is claimed
    page = " ".join(Page(write_report(few, tmp_path / "r.html").read_text()).text)
    assert "bootstrap intervals over windows" in page
    assert "Windows of one episode are not independent" in page


def test_a_metric_is_compared_by_the_episodes_of_its_windows() -> None:
    """Twice the same windows: over episodes the interval stays, and a change is no clearer than before."""
    names = tuple(f"e{number}" for number in range(EPISODES))
    before, after = _curves(0.0), _curves(0.2)
    after.per_frame["psnr"][:] += np.linspace(-1, 1, EPISODES)[:, None]

    def twice(curves: MetricCurves) -> MetricCurves:
        return MetricCurves(
            {name: np.tile(values, (2, 1)) for name, values in curves.per_frame.items()},
            np.tile(curves.freeze_rate, 2),
            np.tile(curves.motion, 2),
            episodes=names * 2,
        )

    once = compare(replace(before, episodes=names), replace(after, episodes=names))[0]
    again = compare(twice(before), twice(after))[0]
    limits = [(one.low, one.high) for one in (again.change.difference, again.before, again.after)]
    expected = [(one.low, one.high) for one in (once.change.difference, once.before, once.after)]
    np.testing.assert_allclose(limits, expected)


def test_lower_is_better_turns_the_gain_around() -> None:
    lpips = next(c for c in compare(_curves(0.0), _curves(0.2)) if c.name == "LPIPS")
    mean, low, high = lpips.gain()
    assert lpips.change.difference.mean == pytest.approx(-0.2)
    assert lpips.verdict == "better"
    assert low <= mean <= high
    assert mean == pytest.approx(20, rel=0.02)


def test_panels_must_fit() -> None:
    clip = _clip(0)
    short = EpisodeClip("short", {**clip.panels, "before": clip.panels["before"][:-1]})
    with pytest.raises(UserError, match="short: panels have the shapes"):
        tile(short)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 40.0), (1e-6, 2e-5), (20.1, 20.2)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = plots.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] < ticks[-1] <= high
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_curves_break_where_values_are_missing() -> None:
    y = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
    svg = plots.line_chart([plots.Series("a", "after", np.arange(5), y)])
    assert svg.count("<polyline") == 2
    assert "no finite values" in plots.line_chart(
        [plots.Series("a", "after", np.arange(2), y[2:3].repeat(2))]
    )


@pytest.mark.parametrize(
    ("name", "title"),
    [("align/kl", "KL"), ("eval/roi_lpips", "Eval ROI-LPIPS"), ("clip_fraction", "Clip fraction")],
)
def test_curve_titles(name: str, title: str) -> None:
    assert curve_title(name, "align/") == title


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.5, 4, "0.5000"), (-1.25, 2, "−1.25"), (float("nan"), 2, "–"), (7, None, "7"), (0.1, None, "0.1000")],
)
def test_numbers_are_written_for_people(value: float, digits: int | None, text: str) -> None:
    assert number(value, digits) == text


def test_results_become_curves_clips_and_tables() -> None:
    """What the protocols answer, rearranged: nothing is lost, averaged twice or put in another's place."""
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (2, FRAMES, 2, 32, 48, 3), dtype=np.uint8)
    before, after = (
        PolicyResult(
            "SWR, W = 6", RefreshConfig(), _curves(gain), np.zeros(FRAMES), 0.0, 1, 1, frames + shift
        )
        for gain, shift in ((0.0, 0), (0.2, 1))
    )
    windows = [
        EvaluationWindow(
            Prompt(f"w{i}", frames[0, 0], frames[0, 0], np.zeros((FRAMES, 1), np.int64)), frames[1] // 2
        )
        for i in range(EPISODES)
    ]
    clips = episode_clips(windows, {"before": before, "after": after})
    assert [clip.title for clip in clips] == ["w0", "w1"]  # as many as both kept
    assert list(clips[1].panels) == ["context", "real", "before", "after"]
    np.testing.assert_array_equal(clips[1].panels["real"], frames[1] // 2)
    np.testing.assert_array_equal(clips[1].panels["before"], frames[1])
    np.testing.assert_array_equal(clips[1].panels["after"], frames[1] + 1)
    first = before.metrics.per_frame["psnr"][0].mean(), after.metrics.per_frame["psnr"][0].mean()
    assert clips[0].caption.startswith(f"PSNR {first[0]:.2f} → {first[1]:.2f} dB")

    result = LongHorizonResult((before, after), _curves(-1.0), "LPIPS-alex", FRAMES, EPISODES, 1)
    curves = policy_curves(result)
    assert list(curves) == ["psnr", "ssim", "lpips"]
    np.testing.assert_allclose(
        curves["ssim"]["copy first frame"], _curves(-1.0).per_frame["ssim"].mean(axis=0)
    )

    table = one_step_table(OneStepResult(_curves(0.3), _curves(0.1), _curves(0.2), "LPIPS-alex", 4))
    assert [row[0] for row in table.rows] == ["true actions", "shuffled actions", "copy the last frame"]
    assert table.rows[1][1] == pytest.approx(_curves(0.1).per_frame["psnr"].mean())


def test_a_judged_section_shows_scores_drift_and_reasons(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (FRAMES, 32, 32, 3), dtype=np.uint8)
    updates = np.arange(4)
    section = JudgedSection(
        table=Table(
            "Scores by dimension", ["dimension", "student: before"], [["Physics /2", 1.25]], digits=[None, 3]
        ),
        drift={"Held out": {"student": (updates, updates * 1.0), "teacher": (updates, updates * -1.0)}},
        events=["After update 4: relabelled."],
        clips=[JudgedClip("“open <it>”", frames, [("student", np.full(7, 0.5))], "The hand & the drawer.")],
    )
    page = Page(write_report(_data(judged=section), tmp_path / "report.html").read_text())
    assert page.balanced
    assert "judged" in page.sections
    told = " ".join(page.text)
    for words in (
        "Physics /2",
        "1.250",
        "After update 4: relabelled.",
        "“open <it>”",
        "The hand & the drawer.",
    ):
        assert words in told
    shown = decode_video(base64.b64decode(page.videos[-1].split(",", 1)[1]))
    assert len(shown) == FRAMES
    assert "judged" not in Page(write_report(_data(), tmp_path / "plain.html").read_text()).sections


def test_views_have_curves_and_rows_of_their_own(tmp_path: Path) -> None:
    """Front gains, wrist loses; their mean would show neither."""
    before = MetricCurves.over({"front": _curves(0.0), "wrist": _curves(0.0)})
    after = MetricCurves.over({"front": _curves(0.2), "wrist": _curves(-0.3)})
    curves = frame_curves({"before": before, "after": after}, ("psnr",))
    assert list(curves) == ["psnr/front", "psnr/wrist"]
    np.testing.assert_allclose(curves["psnr/wrist"]["after"] - curves["psnr/wrist"]["before"], -0.3)

    methods = method_table({"before": before, "after": after}, "All methods")
    assert [row[:2] for row in methods.rows] == [
        ["before", "front"], ["before", "wrist"], ["after", "front"], ["after", "wrist"],
    ]  # fmt: skip
    assert methods.rows[2][2] - methods.rows[0][2] == pytest.approx(0.2)
    assert methods.rows[0][-2:] == pytest.approx([0.1, 0.9])

    pairs = paired_table({"after against before": (before, after)}, "Pairs")
    told = {(row[1], row[2]): row for row in pairs.rows}
    assert told["front", "LPIPS"][3].startswith("-0.2000\u00a0[")
    assert told["front", "LPIPS"][4:7] == [f"{EPISODES} of {EPISODES}", 100.0, 2 / 2**EPISODES]
    assert told["wrist", "PSNR, dB"][4:7] == [f"0 of {EPISODES}", 0.0, 2 / 2**EPISODES]
    assert told["wrist", "PSNR, dB"][7:] == ["0.100\u00a0→\u00a00.100", "0.900\u00a0→\u00a00.900"]

    data = _data(frame_curves=curves, tables=[methods, pairs], clips=[])
    words = " ".join(Page(write_report(data, tmp_path / "r.html").read_text()).text)
    for shown in ("PSNR, dB ↑, wrist", "after against before", "Frozen ↓", f"0 of {EPISODES}"):
        assert shown in words, shown


def test_a_histogram_has_a_bar_per_bin_as_tall_as_its_count() -> None:
    svg = plots.histogram_bars([0.0, 1.0, 2.0, 3.0], [4, 0, 2], description="made")
    tall = [float(value) for value in re.findall(r'<rect[^>]* height="([0-9.]+)"', svg)]
    assert len(tall) == 3
    assert tall[1] == 0
    assert tall[0] == pytest.approx(2 * tall[2])
    left = [float(value) for value in re.findall(r'<rect x="([0-9.]+)"', svg)]
    assert left[1] - left[0] == pytest.approx(left[2] - left[1], abs=0.11)
    assert "0 to 1: 4" in svg
