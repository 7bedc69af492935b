"""The vision encoder's own lessons: whitened patches, scores from pictures and sentence, and the model they leave."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign_ray.config import SmallTeacherConfig, TeacherConfig
from roboalign_ray.config.base import ConfigError
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.teacher.small import make_small_teacher
from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, load_model
from roboalign_ray.judge.teacher.vision import (
    VisionScorer,
    VisionTrainer,
    seeing_model,
    vision_inputs,
    whiten_patches,
    whiten_tokens,
)

SENTENCES = ("open the drawer", "push the button")


def pair(number: int, asked: str, frames: int = 4) -> JudgedPair:
    """A dim picture with a spot on the left where the drawer is opened, on the right where the button is pushed."""
    video = np.random.default_rng(number).integers(90, 110, (frames, 32, 32, 3), dtype=np.uint8)
    done = SENTENCES[number % 2]
    side = slice(0, 8) if done == SENTENCES[0] else slice(24, 32)
    video[:, 8:24, side] += 20
    scores = (float(asked == done) * maxima()).astype(np.float32)
    return JudgedPair(f"p{number}", f"g{number}", video, 5.0, asked, scores, "test", "real")


@pytest.fixture(scope="module")
def config() -> TeacherConfig:
    return TeacherConfig.model_validate(
        {
            "small": SmallTeacherConfig.tiny().model_dump(),
            "frames": 4,
            "pixels": 1024,
            "reasoning": False,
            "precision": "float32",
            "prompt": {"opening": "", "rubric": "none", "closing": "", "describe_answer": False},
            "training": {
                "start": "small",
                "method": "full",
                "vision_steps": 60,
                "warmup_steps": 2,
                "learning_rate": 3e-3,
            },
        }
    )


@pytest.fixture(scope="module")
def source(config: TeacherConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    make_small_teacher(config, SENTENCES, folder)
    return str(folder)


@pytest.fixture
def scorer(source: str, config: TeacherConfig) -> VisionScorer:
    torch.manual_seed(0)
    prompter = VideoPrompter(source, config)
    return VisionScorer(load_model(source, "float32").model.visual, len(prompter.tokenizer))


def test_whitened_patches_are_centred_and_differ_alike(scorer: VisionScorer) -> None:
    generator = torch.Generator().manual_seed(0)
    first = scorer.visual.patch_embed
    width, channels = first.proj.weight.shape[0], first.proj.weight[0].numel()
    spread = torch.logspace(1, -1, channels)
    turned = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    patches = (torch.randn(4000, channels, generator=generator) * spread) @ turned + 3
    whiten_patches(scorer.visual, patches)
    with torch.no_grad():
        seen = first(patches)
    covariance = torch.cov(seen.T)
    assert torch.allclose(seen.mean(0), torch.zeros(width), atol=1e-3)
    assert torch.allclose(covariance, torch.diag(covariance.diag()), atol=1e-3)
    top = torch.linalg.svdvals(patches - patches.mean(0))[:width] / 4000**0.5
    assert torch.allclose(covariance.diag().sqrt(), 0.5 * top / (top + 0.02), rtol=1e-2)


def test_a_video_scores_alike_in_any_company(
    scorer: VisionScorer, source: str, config: TeacherConfig
) -> None:
    """Videos of other lengths too: their tokens must not be mixed up."""
    prompter = VideoPrompter(source, config)
    pairs = [pair(0, SENTENCES[0]), pair(1, SENTENCES[0], frames=2), pair(3, SENTENCES[1])]
    scorer.eval()
    with torch.no_grad():
        together = scorer(**vision_inputs(pairs, prompter))
        alone = torch.cat([scorer(**vision_inputs([one], prompter)) for one in pairs])
    assert together.shape == (3, 6)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[2])


def test_it_learns_what_was_asked_and_seen_and_goes_on_where_it_stopped(
    scorer: VisionScorer, source: str, config: TeacherConfig, tmp_path: Path
) -> None:
    prompter = VideoPrompter(source, config)
    drawn = [pair(n, SENTENCES[(n // 2) % 2]) for n in range(16)]
    whiten_patches(scorer.visual, vision_inputs(drawn, prompter)["patches"])
    trainer = VisionTrainer(scorer, scorer, prompter, config)
    losses = [trainer.step(drawn)["loss"] for _ in range(59)]
    kept = copy.deepcopy(trainer.state_dict())
    losses.append(trainer.step(drawn)["loss"])
    assert losses[-1] < losses[0] / 4
    with torch.no_grad():
        told = trainer.result()(**vision_inputs(drawn, prompter)).mean(1)
    right = torch.tensor([float(one.scores.sum()) > 5 for one in drawn]).bool()
    assert told[right].min() > told[~right].max()

    torch.manual_seed(1)
    other = VisionScorer(load_model(source, "float32").model.visual, len(prompter.tokenizer))
    resumed = VisionTrainer(other, other, prompter, config)
    resumed.load_state_dict(kept)
    assert resumed.step(drawn)["loss"] == pytest.approx(losses[-1], rel=1e-6)

    examples = vision_inputs(drawn, prompter)
    seeing_model(source, trainer.result(), examples, tmp_path / "seeing")
    before, after = load_model(source, "float32"), load_model(str(tmp_path / "seeing"), "float32")
    taught = scorer.visual.state_dict()
    for name, value in after.model.visual.state_dict().items():
        if "linear_fc2" not in name or "merger" not in name:
            torch.testing.assert_close(value, taught[name].bfloat16().float())
    for name, value in after.model.language_model.state_dict().items():
        assert torch.equal(value, before.model.language_model.state_dict()[name]), name


def test_whitened_tokens_tell_what_they_told(
    scorer: VisionScorer, source: str, config: TeacherConfig
) -> None:
    """Centred, uncorrelated, of equal size where the floor does not matter; and what they were can be had back."""
    prompter, visual = VideoPrompter(source, config), scorer.visual
    inputs = vision_inputs([pair(n, SENTENCES[n % 2]) for n in range(16)], prompter)
    whiten_patches(visual, inputs["patches"])
    with torch.no_grad():
        before = visual(inputs["patches"], grid_thw=inputs["grids"])
        whiten_tokens(visual, inputs["patches"], inputs["grids"])
        after = visual(inputs["patches"], grid_thw=inputs["grids"])
    levels = [
        (before.pooler_output, after.pooler_output),
        *zip(before.deepstack_features, after.deepstack_features, strict=True),
    ]
    assert len(levels) == 2
    for old, new in levels:
        covariance = torch.cov(new.T)
        assert torch.allclose(new.mean(0), torch.zeros(new.shape[1]), atol=1e-3)
        assert torch.allclose(covariance, torch.diag(covariance.diag()), atol=1e-3)
        sizes = torch.linalg.svdvals(old - old.mean(0)) / len(old) ** 0.5
        expected = sizes / (sizes + 0.02 * sizes[0])
        torch.testing.assert_close(covariance.diag().sqrt(), expected, atol=2e-2, rtol=2e-2)
        again = torch.linalg.lstsq(new, old - old.mean(0)).solution
        torch.testing.assert_close(new @ again, old - old.mean(0), atol=1e-3, rtol=1e-2)


def test_few_tokens_and_such_as_never_differ_are_whitened_too(
    scorer: VisionScorer, source: str, config: TeacherConfig
) -> None:
    """Fewer than the encoder is wide: nothing is lost, and nothing becomes infinite."""
    prompter, visual = VideoPrompter(source, config), scorer.visual
    one = vision_inputs([pair(0, SENTENCES[0])], prompter)
    with torch.no_grad():
        for patches in (one["patches"], torch.zeros_like(one["patches"])):
            whiten_patches(visual, patches)
            whiten_tokens(visual, patches, one["grids"])
            assert len(visual(patches, grid_thw=one["grids"]).pooler_output) < config.small.hidden
            assert all(torch.isfinite(value).all() for value in visual.state_dict().values())


def test_a_model_that_has_seen_pictures_is_not_taught_to_see() -> None:
    with pytest.raises(ConfigError, match="needs no steps of its vision encoder"):
        TeacherConfig.model_validate({"training": {"vision_steps": 10}})
