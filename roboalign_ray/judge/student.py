"""The student judge: a video and a text encoder, fused, with a linear six-way head.

    sampled frames ──► patches ─┬─► space-time transformer ──┐
                                └─► summary ───────────────┐ ├─► queries: text, then video ──► scores, variances
    instruction ─────► word pieces ──► text transformer ───┴─┘                                 [6] each

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.judge.attention import FusionLayer, SpaceTimeLayer
from roboalign_ray.judge.calibration import Calibration
from roboalign_ray.judge.clips import prepare_clips
from roboalign_ray.judge.rubric import DIMENSIONS, denormalise, names
from roboalign_ray.judge.text import HASHED, HashedText, PretrainedText, TextTokens, load_encoder
from roboalign_ray.world_model.codec import FrameCodec
from roboalign_ray.world_model.rollout import RolloutGroup

FORMAT = 1
WEIGHTS, DESCRIPTION = "student.safetensors", "student.json"
PATCHES = "patches"
_TEXT, _VISION = "text_encoder", "vision_encoder"  # folders of plugged-in encoders' shapes
_LOG_VARIANCE = (-8.0, 2.0)  # standard deviations of 0.02 to 2.7 of a dimension's range
_FIRST_GUESS, _FIRST_LOG_VARIANCE = 0.5, -3.0


@dataclass(frozen=True)
class Judgement:
    """What a judge says of B videos.

    Attributes:
        scores: float64 [B, 6], rubric points; NaN where a score could not be given.
        std: float64 [B, 6], the judge's own uncertainty, in points.
        version: of the judge.
    """

    scores: np.ndarray
    std: np.ndarray
    version: int

    @property
    def totals(self) -> np.ndarray:
        """float64 [B], 0 to 10."""
        return self.scores.sum(-1)


class Patches(nn.Module):
    """Two layers per patch of a frame, of its change since the frame before, and of three energies.

    Blur, grain, stillness and pace are sizes of differences whose signed mean is nothing: a network that sees signed
    values alone has to find rectification first, and takes many times as many clips to. The energies are roots of
    absolute differences: to the frame before, to the mean of the pixel's neighbours, and to the clip's first frame.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        channels, squares = 9 if config.motion else 5, config.patch // config.square
        self.tokens = (config.height // config.patch) * (config.width // config.patch)
        self.embed = nn.Sequential(
            nn.Conv2d(channels, config.hidden // 4, config.square, config.square),
            nn.GELU(),
            nn.Conv2d(config.hidden // 4, config.hidden, squares, squares),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, T, K, 3, H, W] in [0, 1] to tokens [B, T, N, W]."""
        frames = clips[:, :, 0].flatten(0, 1)
        first = clips[:, :1, 0].expand(-1, clips.shape[1], -1, -1, -1).flatten(0, 1)
        around = nn.functional.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)
        seen = [frames * 2 - 1, _energy(frames - around), _energy(frames - first)]
        if clips.shape[2] > 1:
            change = frames - clips[:, :, 1].flatten(0, 1)
            seen += [4 * change, _energy(change)]
        tokens = self.embed(torch.cat(seen, dim=1))
        return rearrange(tokens, "(b t) w y x -> b t (y x) w", b=len(clips))


def _energy(difference: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, 1, H, W], about 0 to 2; the root gives small differences a say."""
    return 4 * (difference.abs().mean(dim=1, keepdim=True) + 1e-6).sqrt()


class PretrainedFrames(nn.Module):
    """A transformers vision encoder on every sampled frame, beside the patches that carry motion."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, name: str, *, weights: bool = True) -> None:
        super().__init__()
        self.frozen = config.freeze_pretrained
        self.model, width = load_encoder(name, weights=weights, where="judge.student.vision_encoder")
        if self.frozen:
            self.model.requires_grad_(False)
        size = getattr(self.model.config, "image_size", 224)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.project = nn.Linear(width, config.hidden)
        self.patches = Patches(config) if config.motion else None
        # What public encoders were trained with differs little from this; the projection adapts to the rest.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            grid = self.model(pixel_values=torch.zeros(1, 3, *self.size)).last_hidden_state
        self.tokens = grid.shape[1] + (self.patches.tokens if self.patches else 0)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, T, K, 3, H, W] in [0, 1] to tokens [B, T, N, W]."""
        images = nn.functional.interpolate(clips[:, :, 0].flatten(0, 1), self.size, mode="bilinear")
        images = (images - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.model(pixel_values=images).last_hidden_state
        tokens = rearrange(self.project(features), "(b t) n w -> b t n w", b=len(clips))
        return tokens if self.patches is None else torch.cat([tokens, self.patches(clips)], dim=2)

    def train(self, mode: bool = True) -> PretrainedFrames:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self


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
        self.frames = _vision(config, encoders)
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
        # left. Means of the patches reach the head directly, alone and multiplied with what was asked.
        self.summary = nn.Sequential(
            nn.BatchNorm1d(config.frames * width),
            nn.Linear(config.frames * width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
        )
        self.asked = nn.Sequential(nn.BatchNorm1d(self.text.width), nn.Linear(self.text.width, width))
        self.whitening = nn.BatchNorm1d(config.fusion_queries * width)
        features = (config.fusion_queries + 2) * width
        self.head = nn.Linear(features, len(DIMENSIONS))
        self.variance_head = nn.Linear(features, len(DIMENSIONS))
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
        patches_BTNW = self.frames(clips.float() / 255)
        summary = self.summary(patches_BTNW.mean(dim=2).flatten(1))
        video_BMW = self.video(patches_BTNW + self.times + self.places).flatten(1, 2)
        words_BLW, there = self.text(text), text.mask.unsqueeze(-1)
        asked = self.asked((words_BLW * there).sum(dim=1) / there.sum(dim=1))
        text_BLW = self.text_projection(words_BLW)
        x = self.queries.expand(len(clips), -1, -1)
        for layer in self.fusion:
            x = layer(x, text_BLW, text.mask, video_BMW)
        fused = torch.cat([self.whitening(x.flatten(1)), summary, summary * asked], dim=1)
        # The likelihood that teaches the variances grows without bound where a sure student is wrong, as it is on the
        # first fresh rollouts: it must not reach the features that the scores are made of.
        return self.head(fused), self.variance_head(fused.detach()).clamp(*_LOG_VARIANCE)

    def tokenize(self, instructions: Sequence[str]) -> TextTokens:
        """Instructions as the text encoder reads them."""
        return self.text.tokenize(instructions)

    def score(
        self, videos: Sequence[np.ndarray] | np.ndarray, instructions: Sequence[str], *, batch: int = 32
    ) -> Judgement:
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
        return self.judgement(*raw)

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
        self.eval()
        means, variances = [np.empty((0, len(DIMENSIONS)))], [np.empty((0, len(DIMENSIONS)))]
        with torch.inference_mode():
            for clips, instructions in batches:
                pixels = torch.from_numpy(np.ascontiguousarray(clips)).to(device)
                mean, log_variance = self(pixels, self.tokenize(instructions).to(device))
                means.append(mean.double().cpu().numpy())
                variances.append(log_variance.double().exp().cpu().numpy())
        self.train(was_training)
        return np.concatenate(means), np.sqrt(np.concatenate(variances))

    def judgement(self, shares: np.ndarray, std: np.ndarray) -> Judgement:
        """Raw shares and standard deviations as points, calibrated."""
        if self.calibration is not None:
            shares, std = self.calibration.apply(shares), self.calibration.apply_std(std)
        return Judgement(denormalise(shares.clip(0, 1)), denormalise(std), self.version)

    def score_group(
        self, group: RolloutGroup, codec: FrameCodec, start: np.ndarray | None = None, *, batch: int = 32
    ) -> Judgement:
        """Judge a rollout group from its tokens, decoded here.

        Args:
            group: G samples of one prompt.
            codec: of the tokenizer that made the tokens.
            start: uint8 [H, W, 3], the real frame the rollout starts from; shown first where given.
        """
        videos = with_start(start, codec.decode_group(group))
        return self.score(videos, [group.instruction] * len(videos), batch=batch)

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
            told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            _check_description(told, folder)
            student = cls(StudentConfig.model_validate(told["config"]), encoders=folder)
            student.load_state_dict(load_file(folder / WEIGHTS))
            student.calibration = told["calibration"] and Calibration.from_json(told["calibration"])
            student.version = int(told["version"])
        except FileNotFoundError as error:
            raise UserError(
                f"no student judge here: {Path(error.filename or WEIGHTS).name} is missing",
                where=str(folder),
                remedy="give a folder written by 'roboalign distill'",
            ) from error
        except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"student cannot be read: {first_line(error)}",
                where=str(folder),
                remedy="the files are damaged or of two different students; write them again",
            ) from error
        return student.eval()


def with_start(start: np.ndarray | None, generated_GTHWC: np.ndarray) -> np.ndarray:
    """Generated frames [G, T, H, W, 3] behind the frame they start from: [G, T + 1, H, W, 3]."""
    if start is None:
        return generated_GTHWC
    first = np.broadcast_to(start, (len(generated_GTHWC), 1, *start.shape))
    return np.concatenate([first, generated_GTHWC], axis=1)


def parameter_count(module: nn.Module) -> int:
    """Trained and frozen parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _vision(config: StudentConfig, encoders: Path | None) -> Any:
    if config.vision_encoder == PATCHES:
        return Patches(config)
    named = str(encoders / _VISION) if encoders else config.vision_encoder
    return PretrainedFrames(config, named, weights=encoders is None)


def _text(config: StudentConfig, encoders: Path | None) -> Any:
    if config.text_encoder == HASHED:
        return HashedText(config)
    named = str(encoders / _TEXT) if encoders else config.text_encoder
    return PretrainedText(named, config.text_words, config.freeze_pretrained, weights=encoders is None)


def _check_description(told: dict[str, Any], folder: Path) -> None:
    if told["format"] != FORMAT:
        raise UserError(f"student of format {told['format']}, this version reads {FORMAT}", where=str(folder))
    if told["dimensions"] != list(names()):
        raise UserError("was trained for another rubric", where=str(folder), remedy="distil it again")


def _check_questions(videos: Any, instructions: Sequence[str]) -> None:
    if len(videos) != len(instructions):
        raise UserError(f"{len(videos)} videos but {len(instructions)} instructions", where="student")
    for text in instructions:
        if not text.strip():
            raise UserError("empty instruction", where="student", remedy="say what the robot should do")
