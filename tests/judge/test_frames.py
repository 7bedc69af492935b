"""What the student sees: channels shifted along time exactly, blocks that begin as nothing, grids that fit."""

from __future__ import annotations

import pytest
import torch

from roboalign_ray.config.base import ConfigError
from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.judge.student.frame_encoder import Patches, _ShiftBlock, _shifted

CONFIG = StudentConfig.small(height=32, width=48, frames=3, hidden=16, heads=2, stem=(4, 8))


def test_channels_come_from_the_neighbours_in_time() -> None:
    batch, length, channels = 2, 5, 8
    x = torch.randn(batch * length, channels, 3, 4)
    frames, shifted = (
        x.view(batch, length, channels, 3, 4),
        _shifted(x, length).view(batch, length, channels, 3, 4),
    )
    for t in range(length):
        for clip in range(batch):
            after = frames[clip, t + 1, :2] if t + 1 < length else torch.zeros(2, 3, 4)
            before = frames[clip, t - 1, 2:4] if t else torch.zeros(2, 3, 4)
            assert torch.equal(shifted[clip, t, :2], after)
            assert torch.equal(shifted[clip, t, 2:4], before)
            assert torch.equal(shifted[clip, t, 4:], frames[clip, t, 4:])


def test_a_block_begins_as_the_identity() -> None:
    x = torch.rand(6, 8, 4, 4)
    assert torch.equal(_ShiftBlock(8)(x, 3), x)


def test_every_patch_becomes_a_token_of_every_frame() -> None:
    patches = Patches(CONFIG).eval()
    for norm in patches.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(norm.weight)  # blocks that are no longer the identity
    clips = torch.rand(2, 3, 5, 3, 32, 48)
    tokens = patches(clips)
    assert tokens.shape == (2, 3, patches.tokens, 16)
    assert patches.tokens == 2 * 3
    changed = clips.clone()
    changed[0, 1] = 1 - changed[0, 1]
    moved = (patches(changed) - tokens).abs().amax(dim=(2, 3)) > 1e-6
    assert moved[0].all()  # a frame's neighbours hear of it
    assert not moved[1].any()  # another clip does not


def test_scales_must_lead_from_square_to_patch() -> None:
    with pytest.raises(ConfigError, match="doubled by 1 scales of the stem, is not patch 16"):
        StudentConfig.small(stem=(8,))
