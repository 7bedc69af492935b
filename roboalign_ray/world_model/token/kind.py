"""The kind "token" of the registry: a LLaMA with its layout and action bins, and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from roboalign_ray.config import JobConfig, RolloutConfig, TokenizerConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.foundation.weight_sync.files import check_weights_file
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer, read_config
from roboalign_ray.world_model.protocol import ModelCard
from roboalign_ray.world_model.token.decoder import TokenDecoder, token_card
from roboalign_ray.world_model.token.engine import RolloutEngine
from roboalign_ray.world_model.token.layout import SequenceLayout, check_same_layout, read_layout
from roboalign_ray.world_model.token.rollout import TokenPayload
from roboalign_ray.world_model.token.transformer import load_pretrained


class TokenKind:
    """Implements `registry.WorldModelKind`."""

    payload = TokenPayload

    @classmethod
    def check(cls, folder: Path, *, tokenizer: Path | None, config: JobConfig | None = None) -> ModelCard:
        """Check that weights, layout, action bins and tokenizer exist and fit together, and fit the job, if given.

        Raises:
            UserError: something is missing or does not fit.
        """
        layout = read_layout(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"holds no {name}", where=str(folder), remedy="give a world model folder")
        check_weights_file(folder / "model.safetensors")
        size = read_object(folder / "config.json", "model config").get("vocab_size")
        if size != layout.vocabulary:
            raise UserError(
                f"config.json has a vocabulary of {size!r:.40}, layout.json of {layout.vocabulary}",
                where=str(folder),
                remedy="both must come from one pre-training",
            )
        shape = _check_tokenizer(layout, folder, tokenizer)
        _check_bins(ActionBinner.load(folder), layout, folder)
        if config is not None:
            bins = config.episodes.action_bins
            check_same_layout(layout, SequenceLayout.from_config(shape, config.world_model, bins), folder)
        return token_card(layout, shape.height, shape.width, _action_card(layout, folder))

    @classmethod
    def open_model(
        cls, folder: Path, rollout: RolloutConfig, *, tokenizer: Path | None, device: str | None
    ) -> RolloutEngine:
        """The engine, as weight version 0.

        Raises:
            UserError: a folder cannot be read, or the parts do not fit together.
        """
        on = _device(device)
        model, layout = load_pretrained(folder)
        opened = _open_tokenizer(layout, folder, tokenizer, on)
        binner, actions = ActionBinner.load(folder), _action_card(layout, folder)
        return RolloutEngine(model, opened, layout, binner, rollout, device=on, actions=actions)

    @classmethod
    def open_decoder(cls, folder: Path, *, tokenizer: Path | None, device: str | None) -> TokenDecoder:
        """The decoder from tokenizer and layout; the transformer's weights are not read.

        Raises:
            UserError: a folder cannot be read, or the parts do not fit together.
        """
        layout = read_layout(folder)
        opened = _open_tokenizer(layout, folder, tokenizer, _device(device))
        return TokenDecoder(opened, layout, _action_card(layout, folder))

    @classmethod
    def read_weights(cls, folder: Path) -> Mapping[str, Tensor]:
        """The transformer's weights by Hugging Face names.

        Raises:
            UserError: the folder cannot be read.
        """
        return load_pretrained(folder)[0].state_dict()


def _open_tokenizer(
    layout: SequenceLayout, folder: Path, tokenizer: Path | None, device: str
) -> DualBranchTokenizer:
    _check_tokenizer(layout, folder, tokenizer)
    assert tokenizer is not None
    return DualBranchTokenizer.load(tokenizer).to(device)


def _check_tokenizer(layout: SequenceLayout, folder: Path, tokenizer: Path | None) -> TokenizerConfig:
    if tokenizer is None:
        raise UserError(
            "does not say which tokenizer it was trained with, and none lies beside it",
            where=str(folder),
            remedy="name the tokenizer's folder",
        )
    config = read_config(tokenizer)
    expected = SequenceLayout(
        context_tokens=config.context_tokens,
        dynamics_tokens=config.dynamics_tokens,
        action_tokens=layout.action_tokens,
        codes=config.codes,
        action_bins=layout.action_bins,
    )
    check_same_layout(layout, expected, folder)
    return config


def _check_bins(binner: ActionBinner, layout: SequenceLayout, folder: Path) -> None:
    if (binner.dims, binner.bins) != (layout.action_tokens, layout.action_bins):
        raise UserError(
            f"action bins of {binner.dims} dimensions × {binner.bins} bins beside a world model of "
            f"{layout.action_tokens} × {layout.action_bins}",
            where=str(folder),
            remedy="both must come from one pre-training",
        )


def _action_card(layout: SequenceLayout, folder: Path) -> ActionCard | None:
    card = ActionCard.load(folder)
    if card is not None and card.dims != layout.action_tokens:
        raise UserError(
            f"the action card has {card.dims} dimensions, layout.json {layout.action_tokens}",
            where=str(folder),
            remedy="both must come from one pre-training",
        )
    return card


def _device(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
