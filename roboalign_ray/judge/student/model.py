"""The student judge: a video and a text encoder, fused, with a linear six-way head.

    sampled frames ─┬► convolutions, patches ─┬─► space-time transformer ──┐
    and intervals   │                         └─► summary ───────────────┐ ├─► queries: text, then video ──► scores,
                    └► distances of all pairs ──► order of frames ───────┤ │                                 variances
    instruction ─────► word pieces ─────────────► text transformer ──────┴─┘

RoboAlign-R1 (arXiv 2605.03821) distils its VLM teacher into such a model of about 98M parameters; encoders and sizes
are unpublished, ours stand in `StudentConfig`. Inside, scores are shares of each dimension's maximum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.module_files import load_module
from roboalign_ray.foundation.storage.readers import parse_json
from roboalign_ray.judge.rubric import DIMENSIONS, denormalise, names
from roboalign_ray.judge.student.attention import FusionLayer, SpaceTimeLayer
from roboalign_ray.judge.student.calibration import Calibration
from roboalign_ray.judge.student.clips import prepare_clips
from roboalign_ray.judge.student.frame_encoder import Patches, PretrainedFrames
from roboalign_ray.judge.student.order import OrderOfFrames
from roboalign_ray.judge.student.text_encoder import HASHED, HashedText, PretrainedText, TextTokens

FORMAT = 1
WEIGHTS, DESCRIPTION = "student.safetensors", "student.json"
PATCHES = "patches"
_TEXT, _VISION = "text_encoder", "vision_encoder"  # folders of plugged-in encoders' shapes
_LOG_VARIANCE = (-8.0, 2.0)  # standard deviations of 0.02 to 2.7 of a dimension's range
_FIRST_GUESS, _FIRST_LOG_VARIANCE = 0.5, -3.0
_GROWS = ("intervals", "order_places")
_NARROW, _QUARTERS = 64, 2  # channels of the summary's map, and its places a side


@dataclass(frozen=True)
class StudentScores:
    """A student's scores of B videos as arrays, for rewards and tables. `StudentJudge` gives one `Judgement` per video.

    Attributes:
        scores: float64 [B, 6], rubric points; NaN where the student gives no number.
        std: float64 [B, 6], the uncertainty that the student predicts, in points.
        version: the student's version.
    """

    scores: np.ndarray
    std: np.ndarray
    version: int

    @property
    def totals(self) -> np.ndarray:
        """float64 [B], 0 to 10."""
        return self.scores.sum(-1)


class Student(nn.Module):
    """Scores videos on the six dimensions.

    Args:
        config: shape and encoders.
        encoders: folder that `save` wrote, whose plugged-in encoders' shapes are taken; None loads them by name.

    Attributes:
        version: 0 until published.
        calibration: applied by `score`, not by `forward`; None leaves scores as they come.

    Raises:
        UserError: a named encoder cannot be found.
    """

    def __init__(self, config: StudentConfig, *, encoders: Path | None = None) -> None:
        super().__init__()
        self.config, self.version = config, 0
        self.calibration: Calibration | None = None
        width, heads, ffn = config.hidden, config.heads, config.ffn
        self.frames = _frames(config, encoders)
        self.times = nn.Parameter(torch.randn(config.frames, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(self.frames.tokens, width) * 0.02)
        self.video = nn.Sequential(
            *(SpaceTimeLayer(width, heads, ffn, config.dropout) for _ in range(config.layers))
        )
        self.text = _text(config, encoders)
        self.text_projection = nn.Linear(self.text.width, width)
        self.queries = nn.Parameter(torch.randn(config.fusion_queries, width) * 0.02)
        self.fusion = nn.ModuleList(
            FusionLayer(width, heads, ffn, config.dropout) for _ in range(config.fusion_layers)
        )
        # Clips of one scene hardly differ beside what they share: whitened over the batch, the difference is what is
        # left. A coarse map of every frame reaches the head by a short way, alone and multiplied with what was asked.
        self.summary = _Summary(self.frames, config)
        self.asked = nn.Sequential(nn.BatchNorm1d(self.text.width), nn.Linear(self.text.width, width))
        self.order = OrderOfFrames(config, _NARROW) if config.intervals else None
        features = (config.fusion_queries + 2) * width + (_NARROW if config.intervals else 0)
        self.mixture = nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, width), nn.GELU())
        self.head = nn.Linear(width, len(DIMENSIONS))
        # What the order of frames costs, it costs whatever else is seen: a way of its own, without which the gradient
        # would have to find it behind all other features.
        self.order_head = nn.Linear(_NARROW, len(DIMENSIONS), bias=False) if config.intervals else None
        self.variance_head = nn.Linear(width, len(DIMENSIONS))
        if self.order_head is not None:
            nn.init.zeros_(self.order_head.weight)
        for head, bias in ((self.head, _FIRST_GUESS), (self.variance_head, _FIRST_LOG_VARIANCE)):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, bias)

    def forward(self, clips: Tensor, text: TextTokens) -> tuple[Tensor, Tensor]:
        """Raw scores and log-variances.

        Args:
            clips: uint8 [B, frames, K, 3, H, W] from `prepare_clips`.
            text: from `tokenize`.

        Returns:
            shares of the maxima [B, 6] (not clipped), and log-variances of them [B, 6].
        """
        pixels = clips.float() / 255
        patches_BTNW = self.frames(pixels)
        summary = self.summary(patches_BTNW)
        video_BMW = self.video(patches_BTNW + self.times + self.places).flatten(1, 2)
        words_BLW, there = self.text(text), text.mask.unsqueeze(-1)
        asked = self.asked((words_BLW * there).sum(dim=1) / there.sum(dim=1))
        text_BLW = self.text_projection(words_BLW)
        x = self.queries.expand(len(clips), -1, -1)
        for layer in self.fusion:
            x = layer(x, text_BLW, text.mask, video_BMW)
        heard = [x.flatten(1), summary, summary * asked]
        order_BW = None if self.order is None else self.order(pixels)
        if order_BW is not None:
            heard.append(order_BW)
        fused = self.mixture(torch.cat(heard, dim=1))
        scores = self.head(fused)
        if self.order_head is not None:
            scores = scores + self.order_head(order_BW)
        # The likelihood that teaches the variances grows without bound where a sure student is wrong, as it is on the
        # first fresh rollouts: it must not reach the features that the scores are made of.
        return scores, self.variance_head(fused.detach()).clamp(*_LOG_VARIANCE)

    @property
    def words(self) -> frozenset[str]:
        """Words that it has been trained on, which typing errors are mended to; none where a pretrained model reads."""
        return self.text.known if isinstance(self.text, HashedText) else frozenset()

    def learn_words(self, words: Iterable[str]) -> None:
        """Add to `words`, before it is trained on them."""
        if isinstance(self.text, HashedText):
            self.text.known |= frozenset(words)

    def freeze(self, parts: Sequence[str]) -> None:
        """Leave these parts as they are in all further training.

        Raises:
            UserError: there is no part of that name.
        """
        known = dict(self.named_children())
        for name in parts:
            if name not in known:
                raise UserError(
                    f"the student has no part '{name}'",
                    where="judge.distillation.frozen",
                    remedy=f"one of: {', '.join(known)}",
                )
            known[name].requires_grad_(False)

    def tokenize(self, instructions: Sequence[str]) -> TextTokens:
        """Instructions as the text encoder reads them."""
        return self.text.tokenize(instructions)

    def score(
        self, videos: Sequence[np.ndarray] | np.ndarray, instructions: Sequence[str], *, batch: int = 32
    ) -> StudentScores:
        """Judge videos from pixels.

        Args:
            videos: uint8 [T, H, W, 3] each, or [B, T, H, W, 3]; any length from two frames, any size.
            instructions: one per video.
            batch: videos at once; changes memory, not the scores.

        Raises:
            UserError: a video or instruction cannot be used, or their numbers differ.
        """
        _check_questions(videos, instructions)
        raw = self.raw_shares(
            (prepare_clips(videos[i : i + batch], self.config), instructions[i : i + batch])
            for i in range(0, len(videos), batch)
        )
        return self.calibrated(*raw)

    def raw_shares(
        self, batches: Iterable[tuple[np.ndarray, Sequence[str]]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the heads say, before calibration and clipping.

        Args:
            batches: (clips from `prepare_clips`, instructions) each; taken one by one.

        Returns:
            shares of the maxima float64 [B, 6], and their standard deviations float64 [B, 6].
        """
        was_training, device = self.training, self.queries.device
        if was_training:  # a walk over all modules, as long as a tenth of a clip's judgement
            self.eval()
        means, variances = [np.empty((0, len(DIMENSIONS)))], [np.empty((0, len(DIMENSIONS)))]
        with torch.inference_mode():
            for clips, instructions in batches:
                pixels = torch.from_numpy(np.ascontiguousarray(clips)).to(device)
                mean, log_variance = self(pixels, self.tokenize(instructions).to(device))
                means.append(mean.double().cpu().numpy())
                variances.append(log_variance.double().exp().cpu().numpy())
        if was_training:
            self.train()
        return np.concatenate(means), np.sqrt(np.concatenate(variances))

    def calibrated(self, shares: np.ndarray, std: np.ndarray) -> StudentScores:
        """Raw shares and standard deviations as calibrated rubric points."""
        if self.calibration is not None:
            shares, std = self.calibration.apply(shares), self.calibration.apply_std(std)
        return StudentScores(denormalise(shares.clip(0, 1)), denormalise(std), self.version)

    def can_grow(self, config: StudentConfig) -> bool:
        """Whether `grown` can give this shape."""
        shown = {name: getattr(config, name) for name in _GROWS}
        more = all(shown[name] or not getattr(self.config, name) for name in _GROWS)
        return more and self.config.model_copy(update=shown) == config

    def grown(self, config: StudentConfig) -> Student:
        """The same student in a shape that shows it more: the intervals between its frames, their order, where they
        differ most. It makes nothing of what is new yet, so that its scores stay as they are. Uncalibrated.

        Args:
            config: its own, but for `intervals` and `order_places`, of which it has no fewer.
        """
        student = Student(config)
        state = student.state_dict()
        for name, value in self.state_dict().items():
            grown = state[name]
            if value.ndim > 1:
                grown.zero_()
                grown[:, : value.shape[1]] = value
            elif value.ndim:
                grown[: len(value)] = value
            else:
                state[name] = value
        student.load_state_dict(state)
        student.version = self.version
        student.learn_words(self.words)
        return student.eval()

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), config, calibration and version into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)
        if isinstance(self.text, PretrainedText):
            self.text.save_extra(folder / _TEXT)
        if isinstance(self.frames, PretrainedFrames):
            self.frames.model.config.save_pretrained(folder / _VISION)
        description = {
            "format": FORMAT,
            "version": self.version,
            "dimensions": list(names()),
            "config": self.config.model_dump(),
            "calibration": self.calibration.as_json() if self.calibration is not None else None,
            "words": sorted(self.words),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Student:
        """Read what `save` wrote; the student comes back in evaluation mode.

        Raises:
            UserError: files are missing, damaged, of another format, or do not belong together.
        """
        folder = Path(folder)
        try:
            stored = read_description(folder)
            before = {"intervals": False, "order_places": False}  # where a student is older than these
            settings = before | stored["config"]
            config = StudentConfig.model_validate(settings)
            student = load_module(lambda: cls(config, encoders=folder), folder / WEIGHTS)
            student.calibration = stored["calibration"] and Calibration.from_json(stored["calibration"])
            student.version = int(stored["version"])
            student.learn_words(map(str, stored.get("words", ())))
        except FileNotFoundError as error:
            raise UserError(
                folder_fault(
                    folder, f"no student judge here: {Path(error.filename or WEIGHTS).name} is missing"
                ),
                where=str(folder),
                remedy="give a folder written by 'roboalign distill'",
            ) from error
        except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"student cannot be read: {first_line(error)}",
                where=str(folder),
                remedy="the files are damaged or of two different students; write them again",
            ) from error
        return student.eval()


class _Summary(nn.Module):
    """A clip in one vector: every frame's tokens, averaged over the quarters of the picture, and their course in time.

    Output: [B, hidden].
    """

    def __init__(self, frames: nn.Module, config: StudentConfig) -> None:
        super().__init__()
        self.rows = config.height // config.patch if isinstance(frames, Patches) else 1
        self.narrow = nn.Sequential(nn.Linear(config.hidden, _NARROW), nn.GELU())
        width = config.frames * _NARROW * _QUARTERS**2
        self.course = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
        )

    def forward(self, patches_BTNW: Tensor) -> Tensor:
        """Tokens [B, T, N, W] to [B, W]; without a grid, all of a frame's tokens stand for each quarter."""
        x = self.narrow(patches_BTNW)
        grid = rearrange(x, "b t (y x) c -> (b t) c y x", y=self.rows)
        quarters = nn.functional.adaptive_avg_pool2d(grid, _QUARTERS)
        return self.course(rearrange(quarters, "(b t) c y x -> b (t c y x)", b=len(x)))


def with_start(start: np.ndarray | None, generated_GTHWC: np.ndarray) -> np.ndarray:
    """Generated frames [G, T, H, W, 3] behind the frame they start from: [G, T + 1, H, W, 3]."""
    if start is None:
        return generated_GTHWC
    first = np.broadcast_to(start, (len(generated_GTHWC), 1, *start.shape))
    return np.concatenate([first, generated_GTHWC], axis=1)


def parameter_count(module: nn.Module) -> int:
    """Trained and frozen parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _frames(config: StudentConfig, encoders: Path | None) -> Any:
    if config.vision_encoder == PATCHES:
        return Patches(config)
    named = str(encoders / _VISION) if encoders else config.vision_encoder
    return PretrainedFrames(config, named, weights=encoders is None)


def _text(config: StudentConfig, encoders: Path | None) -> Any:
    if config.text_encoder == HASHED:
        return HashedText(config)
    named = str(encoders / _TEXT) if encoders else config.text_encoder
    return PretrainedText(named, config.text_words, config.freeze_pretrained, weights=encoders is None)


def read_description(folder: Path) -> dict[str, Any]:
    """What a student's folder tells of it: format, rubric, shape, calibration and version.

    Raises:
        UserError: it is missing, unreadable, or of another format or rubric.
    """
    path = folder / DESCRIPTION
    try:
        stored = parse_json(path.read_bytes(), where=str(path), what="student")
        known, rubric = stored["format"], stored["dimensions"]
    except FileNotFoundError as error:
        raise UserError(
            folder_fault(folder, f"no student judge here: {DESCRIPTION} is missing"),
            where=str(folder),
            remedy="give a folder written by 'roboalign distill'",
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"student cannot be read: {first_line(error)}",
            where=str(folder),
            remedy="the files are damaged or of two different students; write them again",
        ) from error
    if known != FORMAT:
        raise UserError(f"student of format {known}, this version reads {FORMAT}", where=str(folder))
    if rubric != list(names()):
        raise UserError("was trained for another rubric", where=str(folder), remedy="distil it again")
    return stored


def _check_questions(videos: Any, instructions: Sequence[str]) -> None:
    if len(videos) != len(instructions):
        raise UserError(f"{len(videos)} videos but {len(instructions)} instructions", where="student")
    for text in instructions:
        if not text.strip():
            raise UserError("empty instruction", where="student", remedy="say what the robot should do")
