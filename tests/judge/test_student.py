"""The student: its size, its files, and that the same question gets the same answer however it is asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_student import TINY, tiny_student

from roboalign_ray.config.base import ConfigError
from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.calibration import fit_calibration
from roboalign_ray.judge.student.clips import interval_pictures, prepare_clips, sampled_positions
from roboalign_ray.judge.student.model import DESCRIPTION, Student, parameter_count
from roboalign_ray.judge.student.text_encoder import word_pieces
from roboalign_ray.judge.validation.baselines import TextBlindStudent

SENTENCES = ["push the red button", "open the drawer", "push the red button", "close it"]


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), dtype=np.uint8)


def test_default_size_is_the_published_one() -> None:
    with torch.device("meta"):
        count = parameter_count(Student(StudentConfig()))
    assert abs(count - 98e6) < 0.02 * 98e6


def test_small_size_is_the_demos() -> None:
    with torch.device("meta"):
        count = parameter_count(Student(StudentConfig.small()))
    assert 1.2e6 < count < 1.6e6


def test_the_demo_profile_names_the_small_size() -> None:
    assert load_job("demo").judge.student == StudentConfig.small()


def test_scores_do_not_depend_on_the_batch(videos) -> None:
    student = tiny_student()
    together = student.score(videos, SENTENCES)
    one_by_one = student.score(videos, SENTENCES, batch=1)
    np.testing.assert_allclose(together.scores, one_by_one.scores, atol=1e-5)
    np.testing.assert_allclose(together.std, one_by_one.std, atol=1e-5)
    assert np.ptp(together.scores, axis=0).max() > 1e-3  # videos are told apart at all
    assert (together.scores >= 0).all()
    assert (together.scores <= maxima()).all()
    assert (together.std > 0).all()


def test_the_instruction_counts_and_a_blind_student_does_not_hear_it(videos) -> None:
    student = tiny_student()
    same = np.stack([videos[0], videos[0]])
    heard = student.score(same, ["push the red button", "open the drawer"]).scores
    assert np.abs(heard[0] - heard[1]).max() > 1e-5
    blind = TextBlindStudent(student).score(same, ["push the red button", "open the drawer"]).scores
    np.testing.assert_array_equal(blind[0], blind[1])


def test_case_and_punctuation_do_not_change_an_instruction(videos) -> None:
    student = tiny_student()
    plain, shouted = student.score(videos[[0, 0]], ["push the button", "Push the BUTTON."]).scores
    np.testing.assert_array_equal(plain, shouted)
    assert word_pieces("Ab, c") == [["<ab>", "<ab", "ab>"], ["<c>", "<c>"]]


def test_order_of_frames_counts(videos) -> None:
    student = tiny_student()
    forward, backward = student.score(np.stack([videos[0], videos[0, ::-1]]), ["push it"] * 2).scores
    assert np.abs(forward - backward).max() > 1e-4


def test_a_stutter_between_sampled_frames_is_seen() -> None:
    """Frame 3 of 9 lies between the sampled 0, 4, 8; repeating it changes what precedes frame 4."""
    config = StudentConfig.small(**TINY)
    video = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    stuttering = video.copy()
    stuttering[3] = stuttering[4]
    assert not np.array_equal(prepare_clips([video], config), prepare_clips([stuttering], config))


def test_clips_hold_the_sampled_frames_and_those_before(videos) -> None:
    clip = prepare_clips(videos[:1], StudentConfig.small(**TINY))[0]  # [3, 5, 3, 16, 16]
    np.testing.assert_array_equal(clip[:, 0].transpose(0, 2, 3, 1), videos[0, [0, 2, 4]])
    np.testing.assert_array_equal(clip[:, 1].transpose(0, 2, 3, 1), videos[0, [0, 1, 3]])
    np.testing.assert_array_equal(clip[:, 2].transpose(0, 2, 3, 1), videos[0, [0, 1, 3]])
    longer = np.concatenate([videos[0], videos[1]])  # sampled: 0, 4 (of 4.5), 9
    clip = prepare_clips([longer], StudentConfig.small(**TINY))[0]
    np.testing.assert_array_equal(clip[:, 1].transpose(0, 2, 3, 1), longer[[0, 3, 8]])
    np.testing.assert_array_equal(clip[:, 2].transpose(0, 2, 3, 1), longer[[0, 1, 5]])
    assert sampled_positions(2, 8).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("length", [2, 3, 5, 13, 70, 131])
def test_intervals_hold_what_happens_in_all_frames(length: int) -> None:
    """Against the definition, computed in floating point frame by frame; 70 and 131 frames go by in several parts."""
    video = np.random.default_rng(length).integers(0, 256, (length, 9, 8, 3), dtype=np.uint8)
    positions = sampled_positions(length, 3)
    found = interval_pictures(video.transpose(0, 3, 1, 2), positions)
    values = video.astype(float)
    wider = np.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    around = sum(wider[:, i : i + 9, j : j + 8] for i in range(3) for j in range(3)) / 9
    for number, position in enumerate(positions):
        first = positions[number - 1] + 1 if number and positions[number - 1] < position else position
        changes, bends, returns, details = [], [], [], []
        for t in range(first, position + 1):
            one, two = values[max(t - 1, 0)], values[max(t - 2, 0)]
            changes.append(np.abs(values[t] - one).mean(-1))
            bends.append(np.abs(values[t] - 2 * one + two).mean(-1) / 2 if t > 1 else np.zeros((9, 8)))
            returns.append(np.abs(values[t] - (two if t > 1 else one)).mean(-1))
            details.append(np.abs(values[t] - around[t]).mean(-1))
        expected = [
            np.max(changes, axis=0),
            np.min(changes, axis=0),
            np.max(bends, axis=0),
            np.min(returns, axis=0),
            np.max(details, axis=0),
            np.min(details, axis=0),
        ]
        assert np.abs(found[number].reshape(6, 9, 8) - np.stack(expected)).max() <= 0.51


def test_one_frame_of_a_long_clip_is_seen_wherever_it_is() -> None:
    config = StudentConfig.small(**TINY)
    video = np.full((60, 16, 16, 3), 120, np.uint8)
    sampled = sampled_positions(60, config.frames)
    plain = prepare_clips([video], config)
    for place in range(1, 60):
        flashed = video.copy()
        flashed[place] = 0
        changed = (prepare_clips([flashed], config) != plain)[0].any(axis=(2, 3, 4))
        interval = int(np.searchsorted(sampled, place))
        assert changed[interval, 3], place


def test_a_student_without_intervals_gains_them_and_scores_as_before(videos, tmp_path) -> None:
    old = tiny_student(intervals=False, order_places=False)
    widened = old.grown(StudentConfig.small(**TINY))
    assert widened.config == StudentConfig.small(**TINY)
    np.testing.assert_array_equal(
        old.score(videos, SENTENCES).scores, widened.score(videos, SENTENCES).scores
    )
    old.save(tmp_path)
    told = json.loads((tmp_path / DESCRIPTION).read_text())
    del told["config"]["intervals"], told["config"]["order_places"]  # as written before there were any
    (tmp_path / DESCRIPTION).write_text(json.dumps(told))
    assert Student.load(tmp_path).config == old.config
    with pytest.raises(ConfigError, match="intervals without motion"):
        StudentConfig.small(**TINY, motion=False)


def test_words_around_an_instruction_are_not_read(videos) -> None:
    student = tiny_student()
    plain = student.score(videos, SENTENCES).scores
    for frame in (
        "Please {} now.",
        "could you just {}",
        "OK robot, {}, thanks!",
        "hey, would you kindly {}?",
    ):
        asked = [frame.format(told) for told in SENTENCES]
        np.testing.assert_array_equal(student.score(videos, asked).scores, plain)
    assert word_pieces("I would like you to open it") == word_pieces("open it")
    assert word_pieces("go to it") != word_pieces("go it")
    assert word_pieces("please open the can") == word_pieces("open can")
    assert word_pieces("do not open it") != word_pieces("open it")
    assert word_pieces("please, please") == [["<please>", "<pl", "ple", "lea", "eas", "ase", "se>"]] * 2


def test_other_sizes_are_resized(videos) -> None:
    flat = np.full((1, 4, 40, 24, 3), 100, np.uint8)
    prepared = prepare_clips(flat, StudentConfig.small(**TINY))
    assert (prepared[:, :, :3] == 100).all()
    assert (prepared[:, :, 3:] == 0).all()  # nothing happens in between, and no pixel stands out


def test_saved_student_answers_the_same(videos, tmp_path) -> None:
    student = tiny_student()
    rng = np.random.default_rng(0)
    student.calibration = fit_calibration(rng.random((20, 6)), rng.random((20, 6)), rng.random((20, 6)))
    student.version = 7
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    before, after = student.score(videos, SENTENCES), loaded.score(videos, SENTENCES)
    np.testing.assert_array_equal(before.scores, after.scores)
    np.testing.assert_array_equal(before.std, after.std)
    assert after.version == 7
    assert loaded.config == student.config


def test_damaged_or_foreign_files_are_told_in_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"student\.json is missing"):
        Student.load(tmp_path)
    tiny_student().save(tmp_path)
    told = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps({**told, "dimensions": ["beauty"]}))
    with pytest.raises(UserError, match="another rubric"):
        Student.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps({**told, "config": {**told["config"], "hidden": 32}}))
    with pytest.raises(UserError, match="must come from the same training"):
        Student.load(tmp_path)


@pytest.mark.parametrize(
    ("frames", "sentences", "problem"),
    [
        (np.zeros((1, 5, 16, 16, 3), np.uint8), ["  "], "empty instruction"),
        (np.zeros((1, 1, 16, 16, 3), np.uint8), ["push"], "1 frame"),
        (np.zeros((1, 5, 16, 16, 3), np.float32), ["push"], "not uint8"),
        (np.zeros((2, 5, 16, 16, 3), np.uint8), ["push"], "2 videos but 1"),
    ],
)
def test_what_cannot_be_judged_is_told(frames, sentences, problem) -> None:
    with pytest.raises(UserError, match=problem):
        tiny_student().score(frames, sentences)


def test_a_config_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a multiple of patch"):
        StudentConfig(height=100)
    with pytest.raises(ConfigError, match="not a multiple of heads"):
        StudentConfig(hidden=100, heads=7)


def test_pretrained_encoders_plug_in_and_travel_with_the_files(videos, tmp_path) -> None:
    text, vision = _small_encoders(tmp_path)
    student = tiny_student(text_encoder=text, vision_encoder=vision, text_words=8)
    assert not any(p.requires_grad for p in student.text.parameters())
    student.save(tmp_path / "student")
    for folder in (text, vision):  # the names are needed once
        (tmp_path / folder.rsplit("/", 1)[-1]).rename(tmp_path / f"gone-{folder.rsplit('/', 1)[-1]}")
    loaded = Student.load(tmp_path / "student")
    expected = student.score(videos[:2], SENTENCES[:2]).scores
    np.testing.assert_array_equal(loaded.score(videos[:2], SENTENCES[:2]).scores, expected)


def test_an_unknown_encoder_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"judge\.student\.text_encoder"):
        tiny_student(text_encoder=str(tmp_path / "nobody"))


def _small_encoders(folder) -> tuple[str, str]:
    """A BERT of one layer with a vocabulary of letters, and a ViT of one layer; saved as transformers saves them."""
    from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters += [chr(97 + n) for n in range(26)] + [f"##{chr(97 + n)}" for n in range(26)]
    (folder / "vocab.txt").write_text("\n".join(letters))
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(letters), **shape)).save_pretrained(folder / "text")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "text")
    ViTModel(ViTConfig(image_size=16, patch_size=8, **shape)).save_pretrained(folder / "vision")
    return str(folder / "text"), str(folder / "vision")
