"""The network of the progress cost, and its folder.

    progress.safetensors    weights
    progress.json           format, shape of the network, card
    README.md               the card for readers

Four convolutions of stride 2, no pooling, because where things are is what is asked; one table row per task scales and
shifts the features behind them.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from roboalign_ray.config.agent import ProgressConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.module_files import load_module
from roboalign_ray.foundation.storage.readers import read_object, validated
from roboalign_ray.planning.progress.card import ProgressCard

WEIGHTS, DESCRIPTION, README = "progress.safetensors", "progress.json", "README.md"
FORMAT = 1
WHAT = "progress network"
UNIT_M = 0.1  # metres that an output of 1 stands for
_GROUPS, _BATCH = 8, 256
_SHAPE = ("channels", "hidden")


class ProgressNetwork(nn.Module):
    """Frames and a task in, two distances out.

    Args:
        config: `channels` and `hidden` are used.
        card: tasks, views and frame size.
    """

    def __init__(self, config: ProgressConfig, card: ProgressCard) -> None:
        super().__init__()
        self.config, self.card = config, card
        widths = [3 * len(card.views), *config.channels]
        layers: list[nn.Module] = []
        for taken, given in pairwise(widths):
            groups = _GROUPS if given % _GROUPS == 0 else 1
            layers += [
                nn.Conv2d(taken, given, 5, stride=2, padding=2),
                nn.GroupNorm(groups, given),
                nn.SiLU(),
            ]
        self.convolutions = nn.Sequential(*layers)
        places = (card.height // 16) * (card.width // 16)
        self.features = nn.Linear(config.channels[-1] * places, config.hidden)
        self.tasks = nn.Embedding(len(card.tasks), 2 * config.hidden)
        self.middle = nn.Linear(config.hidden, config.hidden)
        self.head = nn.Linear(config.hidden, 2)
        nn.init.normal_(self.tasks.weight, std=0.1)

    def forward(self, frames: Tensor, tasks: Tensor) -> Tensor:
        """Distances in units of `UNIT_M`, [N, 2], not below 0.

        Args:
            frames: float [N, 3 V, H, W] in [0, 1], see `prepared`.
            tasks: int64 [N], numbers of the card's tasks.
        """
        scale, shift = self.tasks(tasks).chunk(2, dim=-1)
        features = self.features(self.convolutions(frames - 0.5).flatten(1))
        x = F.silu(features * (1 + scale) + shift)
        return F.softplus(self.head(F.silu(self.middle(x))))

    @torch.inference_mode()
    def distances(self, frames: np.ndarray, task: str) -> np.ndarray:
        """Object to target and hand to object in metres, float64 [N, 2].

        Args:
            frames: uint8 [N, V', H, W, 3]; the first V views of V' are read.
            task: one of the card's.

        Raises:
            UserError: the frames are not such as the card says, or the task is another one.
        """
        card, number = self.card, self.card.task(task, WHAT)
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1] < len(card.views):
            raise UserError(
                f"{frames.dtype} {list(frames.shape)} is not uint8 [N, {len(card.views)}, …]", where=WHAT
            )
        if frames.shape[2:] != (card.height, card.width, 3):
            raise UserError(
                f"reads frames of {card.height}x{card.width}, not {frames.shape[2]}x{frames.shape[3]}",
                where=WHAT,
            )
        self.eval()
        device, found = self.head.weight.device, [np.empty((0, 2))]
        for first in range(0, len(frames), _BATCH):
            part = prepared(torch.from_numpy(frames[first : first + _BATCH, : len(card.views)]).to(device))
            tasks = torch.full((len(part),), number, dtype=torch.int64, device=device)
            found.append(UNIT_M * self(part, tasks).double().cpu().numpy())
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Write weights, description and card into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)
        shape = {name: getattr(self.config, name) for name in _SHAPE}
        content = {"format": FORMAT, "shape": shape, "card": self.card.model_dump(mode="json")}
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / README).write_text(_readme(self.card), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> ProgressNetwork:
        """Read what `save` wrote; the network comes back in evaluation mode.

        Raises:
            UserError: files are missing, damaged, of another format, or do not belong together.
        """
        folder = Path(folder)
        remedy = "give a folder written by 'roboalign agent train-cost'"
        content = read_object(folder / DESCRIPTION, WHAT, keys=("format", "shape", "card"), remedy=remedy)
        if content["format"] != FORMAT:
            raise UserError(
                f"format {content['format']!r:.40}, this version reads {FORMAT}", where=str(folder)
            )
        where = str(folder / DESCRIPTION)
        card = validated(content["card"], ProgressCard, WHAT, where=where)
        config = validated(content["shape"], ProgressConfig, WHAT, where=where)
        try:
            return load_module(lambda: cls(config, card), folder / WEIGHTS).eval()
        except FileNotFoundError as error:
            raise UserError(f"{WEIGHTS} is missing", where=str(folder), remedy=remedy) from error
        except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise UserError(f"cannot be read as {WHAT} ({first_line(error)})", where=str(folder)) from error


def prepared(frames: Tensor) -> Tensor:
    """Float [N, 3 V, H, W] in [0, 1] of uint8 [N, V, H, W, 3]."""
    return rearrange(frames, "n v h w c -> n (v c) h w").float() / 255


def _readme(card: ProgressCard) -> str:
    return (
        "# Progress network\n\n"
        "Reads two distances off a frame: of the object to its target, and of the hand to the object. "
        "A planner's cost is three times the first plus the second.\n\n"
        f"Cameras: {', '.join(card.views)}, {card.height}x{card.width} pixels. "
        f"Robots: {', '.join(card.embodiments) or 'not known'}. "
        f"Trained on {card.starts} start states of {card.store or 'a store'}.\n\n"
        "Mean absolute errors on held-out start states:\n\n" + card.table()
    )
