"""Pre-training of a small teacher's vision encoder, before its language model is trained.

    frames ──► vision encoder ──► merged tokens per pair of frames ─┐
    instruction ──► mean of its tokens' embeddings ─────────────────┴► pooled ──► six scores   (discarded)

Frames of one scene differ little compared with what they share. With an untrained encoder, a language model sees them
as nearly constant and answers from the instruction alone; published models start from a pre-trained encoder. Here the
patches are first whitened (PCA of the training videos' patches, so that differences are as large as the shared part).
Then the encoder alone learns the scores. Its output tokens are whitened too, since the head normalises over the batch,
which a language model does not. All of this is [ours].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer, decayed_parameters
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.protocol import JudgeRequest
from roboalign_ray.judge.rubric import DIMENSIONS, normalise
from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, load_model

_FLOOR = 0.02  # added to a component's deviation (for tokens: times the largest): the weakest are noise
_GAIN = 0.5  # deviation of a whitened component, as large as the updates of the encoder's layers
_LEAST_VARIANCE = 1e-12  # deviation of a constant component
_COSINE_FLOOR = 0.05


def whiten_patches(visual: Any, patches_PC: Tensor) -> None:
    """Set the encoder's first layer to the patches' principal components, centred and equally scaled.

    Args:
        visual: a Qwen3-VL vision encoder.
        patches_PC: float, flattened patches from its processor.
    """
    first = visual.patch_embed.proj
    mean, axes, deviations = _components(patches_PC)
    count = min(len(axes), first.weight.shape[0])
    filters = axes[:count] * (_GAIN / (deviations[:count] + _FLOOR)).unsqueeze(1)
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
        first.weight[:count] = filters.reshape(count, *first.weight.shape[1:])
        first.bias[:count] = -filters @ mean


@torch.no_grad()
def whiten_tokens(visual: Any, patches: Tensor, grids: Tensor) -> None:
    """Whiten the encoder's output tokens at every level: centre them and scale their principal components equally.

    The transformation is merged into the mergers' last layers, so the encoder's shape does not change.

    Args:
        visual: a Qwen3-VL vision encoder.
        patches, grids: "pixel_values_videos" and "video_grid_thw" of example videos, from the processor.
    """
    seen = visual(patches, grid_thw=grids)
    mergers = (visual.merger, *visual.deepstack_merger_list)
    for merger, tokens in zip(mergers, (seen.pooler_output, *seen.deepstack_features), strict=True):
        mean, axes, deviations = _components(tokens.float())
        turned = axes / (deviations + _FLOOR * deviations[0]).unsqueeze(1)
        last = merger.linear_fc2
        last.bias.copy_(turned @ (last.bias - mean))
        last.weight.copy_(turned @ last.weight)


def _components(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], principal axes as rows [C, C], and the standard deviations along them, largest first [C]."""
    mean = rows.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov((rows - mean).double().T, correction=0))
    return mean, axes.T.flip(0).to(rows), variances.flip(0).clamp_min(_LEAST_VARIANCE).sqrt().to(rows)


class VisionScorer(nn.Module):
    """A vision encoder with a head that scores a video for an instruction.

    Args:
        visual: a Qwen3-VL vision encoder.
        vocabulary: vocabulary size of the instruction's tokenizer.
    """

    def __init__(self, visual: Any, vocabulary: int) -> None:
        super().__init__()
        self.visual = visual
        width = int(visual.config.out_hidden_size)
        levels = 1 + len(visual.config.deepstack_visual_indexes)
        self.words = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.looked_for = nn.Linear(width, width)
        # Whitened over the batch, for the same reason as the patches.
        features = width * (2 + 3 * levels)
        self.mixture = nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, width), nn.GELU())
        self.head = nn.Linear(width, len(DIMENSIONS))

    def forward(self, patches: Tensor, grids: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
        """Shares of the maxima [B, 6].

        Args:
            patches, grids: "pixel_values_videos" and "video_grid_thw" of B videos, from the processor.
            words, offsets: the concatenated token ids of the instructions, and the beginning of each.
        """
        seen = self.visual(patches, grid_thw=grids)
        asked = self.words(words, offsets)
        merged = int(self.visual.spatial_merge_size) ** 2
        sizes = [int(n) // merged for n in grids.prod(1)]
        levels = [level.split(sizes) for level in (seen.pooler_output, *seen.deepstack_features)]
        rows = [
            self._pooled([level[n] for level in levels], int(grids[n, 0]), asked[n])
            for n in range(len(grids))
        ]
        return self.head(self.mixture(torch.stack(rows)))

    def _pooled(self, levels: Sequence[Tensor], times: int, asked: Tensor) -> Tensor:
        """One video's features: attention by the instruction, and the mean, change and course of every level."""
        tokens = levels[0]
        share = (tokens @ self.looked_for(asked) / tokens.shape[-1] ** 0.5).softmax(0)
        found = share @ tokens
        parts = [found, found * asked]
        for level in levels:
            frames_TD = level.unflatten(0, (times, -1)).mean(1)
            change = (
                (level.unflatten(0, (times, -1)).diff(dim=0)).abs().mean((0, 1)) if times > 1 else 0 * asked
            )
            parts += [frames_TD.mean(0), change, frames_TD[-1] - frames_TD[0]]
        return torch.cat(parts)


class VisionTrainer(AveragedTrainer[VisionScorer]):
    """Trains a vision encoder on the six scores.

    Args:
        model: the `VisionScorer`, or its distributed wrapper.
        plain: the `VisionScorer` without the wrapper.
        prompter: prompter of the teacher that owns the encoder.
        config: the teacher's config.
    """

    def __init__(
        self,
        model: nn.Module,
        plain: VisionScorer,
        prompter: VideoPrompter,
        config: TeacherConfig,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        settings = config.training
        groups = decayed_parameters(model, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, settings.learning_rate, betas=(0.9, 0.98))
        super().__init__(model, plain, optimizer, ema_decay=0.0)
        self.prompter, self.settings, self.device = prompter, settings, device

    def step(self, pairs: Sequence[JudgedPair]) -> dict[str, float]:
        """Make one optimizer step.

        Returns:
            "loss", "mae" (share of the maxima), "grad_norm", "learning_rate".
        """
        settings = self.settings
        rate = self._begin(
            settings.learning_rate,
            warmup=min(settings.warmup, settings.vision_steps // 10),
            total=settings.vision_steps,
            schedule="cosine",
            floor=_COSINE_FLOOR,
        )
        inputs = {name: value.to(self.device) for name, value in vision_inputs(pairs, self.prompter).items()}
        target = torch.stack([torch.from_numpy(normalise(pair.scores)) for pair in pairs]).float()
        predicted = self.model(**inputs).float()
        target = target.to(predicted.device)
        loss = F.huber_loss(predicted, target, delta=settings.huber_delta)
        norm = self._descend(loss, settings.clip_norm)
        error = float((predicted.detach() - target).abs().mean())
        return {"loss": float(loss.detach()), "mae": error, "grad_norm": norm, "learning_rate": rate}


def vision_inputs(pairs: Sequence[JudgedPair], prompter: VideoPrompter) -> dict[str, Tensor]:
    """The inputs of `VisionScorer.forward`: frames as the teacher gets them, instructions as its token ids."""
    shown = [prompter.shown(JudgeRequest(pair.frames, pair.fps, pair.instruction)) for pair in pairs]
    seen = prompter.inputs([prompter.text(pair.instruction) for pair in pairs], shown)
    ids = [prompter.tokenizer(pair.instruction, add_special_tokens=False)["input_ids"] for pair in pairs]
    starts = [0]
    for sentence in ids[:-1]:
        starts.append(starts[-1] + len(sentence))
    return {
        "patches": seen["pixel_values_videos"],
        "grids": seen["video_grid_thw"],
        "words": torch.tensor([token for sentence in ids for token in sentence]),
        "offsets": torch.tensor(starts),
    }


def seeing_model(source: str, scorer: VisionScorer, examples: Mapping[str, Tensor], folder: Path) -> None:
    """Write the model of `source` with the trained encoder, in bfloat16, without the head.

    Args:
        source: model name or folder.
        scorer: the scorer with the trained encoder; it is not changed.
        examples: `vision_inputs` of some training videos, used to whiten the tokens.
        folder: output folder.
    """
    model = load_model(source, "float32")
    visual = model.model.visual
    visual.load_state_dict(scorer.visual.state_dict())
    whiten_tokens(visual, examples["patches"], examples["grids"])
    model.to(torch.bfloat16).save_pretrained(folder)
