"""The single environment: Gymnasium's own checker without a warning, wrappers, rewards, and bad input."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image
from tiny_student import tiny_student
from toy_planning import columns, moves, picture, token_options, toy, toy_options

import roboalign_ray.planning
from roboalign_ray.episodes.video import decode_video, encode_browser_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import names
from roboalign_ray.metrics.frame_metrics import psnr, to_images
from roboalign_ray.planning.vector_env import WorldModelVectorEnv

ID = roboalign_ray.planning.ENVIRONMENT
PYGAME = importlib.util.find_spec("pygame") is not None
if PYGAME:
    importlib.import_module("pygame")  # warns of a package that it uses when it is first imported
COLUMN = {"toy_planning:column": {"weight": 1.0}}
NEAR = {"fidelity": {"weight": 1.0, "lpips_weight": 0.0, "lpips_network": "random-alex"}}


def make(**options) -> gymnasium.Env:
    return gymnasium.make(ID, **toy_options(**options))


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    tiny_student().save(folder)
    return folder


@pytest.mark.parametrize("observation", ["rgb", "dict"])
def test_gymnasiums_checker_finds_nothing(observation, monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(observation=observation, instruction="push", reward=COLUMN, render_mode="rgb_array")
        check_env(env.unwrapped, skip_render_check=not PYGAME)


def test_the_checker_finds_nothing_in_a_token_world_model(token_job) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounds = {"action_bounds": ([-1, -1], [1, 1])}  # the checker asks for ranges within -1 to 1
        env = gymnasium.make(ID, **token_options(token_job, observation="dict", **bounds))
        check_env(env.unwrapped, skip_render_check=not PYGAME)


def test_importing_the_package_registers_and_loads_nothing_heavy() -> None:
    code = f"import sys, gymnasium, roboalign_ray.planning\nprint(gymnasium.spec({ID!r}).id, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [ID, "False"], done.stderr


def test_a_name_with_the_module_needs_no_import() -> None:
    named = f"roboalign_ray.planning:{ID}"
    code = (
        f"import gymnasium\ntry: gymnasium.make({named!r}, horizn=3)\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "unknown option 'horizn'; did you mean 'horizon'?" in done.stdout, done.stderr


def test_it_is_the_vector_environments_only_row() -> None:
    env, envs = make(reward=COLUMN), WorldModelVectorEnv(1, **toy_options(reward=COLUMN))
    seen, info = env.reset(seed=5)
    np.testing.assert_array_equal(seen, envs.reset(seed=5)[0][0])
    assert info == {"frames_since_refresh": 0}
    for action in moves(0, 6):
        one, other = env.step(action), envs.step(action[None])
        np.testing.assert_array_equal(one[0], other[0][0])
        assert one[1:4] == (other[1][0], other[2][0], other[3][0])
        assert [type(part) for part in one[1:4]] == [float, bool, bool]
    assert one[3]


def test_rewards_of_clips_add_up_to_the_score_of_the_clip() -> None:
    env = make(reward=COLUMN)
    env.reset(seed=1)
    steps = [env.step(action) for action in moves(1, 6)]
    assert sum(step[1] for step in steps) == columns(steps[-1][0])
    assert [step[4]["score"] for step in steps] == [columns(step[0]) for step in steps]


def test_a_saved_start_earns_only_what_is_new(tmp_path) -> None:
    env = make(reward=COLUMN)
    env.reset(seed=1)
    env.step(moves(1)[()])
    np.savez(tmp_path / "state.npz", **env.unwrapped.save_state())
    more = make(reward=COLUMN, image=None, state=tmp_path / "state.npz")
    before, _ = more.reset(seed=2)
    after, reward, *_ = more.step(moves(2)[()])
    assert reward == int(columns(after)) - int(columns(before))


def test_fidelity_compares_each_frame_with_the_goal() -> None:
    """SSIM falls as the square leaves the goal; PSNR stands beside it, by the room's own formula."""
    env = make(reward=NEAR, goal=picture(10), world_model=toy(gain=4.0))
    env.reset(seed=0)
    earned = [env.step(np.float32([0, 1]))[1] for _ in range(5)]
    assert earned[0] > earned[-1]
    seen, reward, *_, info = make_and_step(goal=picture(10), reward=NEAR)
    frame, goal = to_images(seen[None], "cpu"), to_images(picture(10), "cpu")
    assert (reward > 0.99) == (float(psnr(frame, goal)[0]) > 60)
    assert reward == info["score"]


def make_and_step(**options):
    env = make(**options)
    env.reset(seed=0)
    return env.step(np.float32([0, 0.5]))


def test_the_judge_tells_its_six_scores(student) -> None:
    options = {"reward": "judged", "judge": student, "instruction": "push the square right"}
    env = make(**options)
    begun, _ = env.reset(seed=0)
    steps = [env.step(action) for action in moves(4, 3)]
    for *_, info in steps:
        assert list(info["judged"]) == list(names())
        assert info["score"] == pytest.approx(sum(info["judged"].values()))
        assert info["uncertainty"] > 0
    assert sum(step[1] for step in steps) == pytest.approx(steps[-1][4]["score"])
    video = np.stack([begun, *(step[0] for step in steps)])
    judged = tiny_student().score([video], ["push the square right"])
    np.testing.assert_allclose(list(steps[-1][4]["judged"].values()), judged.scores[0], atol=1e-5)
    envs = WorldModelVectorEnv(3, **toy_options(**options))
    envs.reset(seed=0)
    *_, infos = envs.step(np.repeat(moves(4, 3)[:1], 3, axis=0))
    first = steps[0][4]["judged"]
    assert {name: infos["judged"][name][0] for name in first} == pytest.approx(first, abs=1e-5)


def test_success_ends_an_episode() -> None:
    env = make(reward=COLUMN, success=14, world_model=toy(gain=3.0))
    env.reset(seed=0)
    for _ in range(6):
        seen, _, terminated, truncated, _ = env.step(np.float32([0, 1]))
        assert terminated == (columns(seen) >= 14)
        if terminated:
            break
    assert terminated
    assert not truncated
    with pytest.raises(UserError, match="is over"):
        env.unwrapped.step(np.float32([0, 0]))


def test_save_step_load_step() -> None:
    env = make()
    env.reset(seed=0)
    env.step(moves(0)[()])
    saved = env.unwrapped.save_state()
    assert all(values.dtype.kind in "biuf" for values in saved.values())
    first = [env.step(action)[0] for action in moves(1, 3)]
    env.unwrapped.load_state(saved)
    again = [env.step(action)[0] for action in moves(1, 3)]
    np.testing.assert_array_equal(first, again)


def test_branches_of_the_single_environment() -> None:
    env = make()
    seen, _ = env.reset(seed=0)
    unseeded = [make() for _ in range(2)]
    for one in unseeded:
        one.reset(seed=6)
    copies = [one.unwrapped.branch(16).step(np.tile(np.float32([0, 0.5]), (16, 1)))[0] for one in unseeded]
    np.testing.assert_array_equal(*copies)
    many = env.unwrapped.branch(16, seed=1)
    frames = many.step(np.tile(np.float32([0, 0.5]), (16, 1)))[0]
    assert many.num_envs == 16
    assert len({frame.tobytes() for frame in frames}) > 1
    np.testing.assert_array_equal(env.unwrapped.planning_state().clip.last[0], seen)


def test_wrappers_of_gymnasium() -> None:
    wrappers = gymnasium.wrappers
    env = wrappers.TimeLimit(make(reward=COLUMN), 3)
    env.reset(seed=0)
    assert [env.step(action)[3] for action in moves(0, 3)] == [False, False, True]
    env = wrappers.FrameStackObservation(make(), 3)
    stacked, _ = env.reset(seed=0)
    assert stacked.shape == (3, 32, 32, 3)
    last, *_ = env.step(moves(1)[()])
    np.testing.assert_array_equal(last[:2], stacked[1:])
    env = wrappers.RecordEpisodeStatistics(make(reward=COLUMN, horizon=2))
    env.reset(seed=0)
    rewards = [env.step(action) for action in moves(0, 2)]
    told = rewards[-1][4]["episode"]
    assert told["l"] == 2
    assert told["r"] == pytest.approx(sum(step[1] for step in rewards))
    env = wrappers.NormalizeReward(wrappers.ClipAction(make(reward=COLUMN)))
    env.reset(seed=0)
    normalised = [env.step(np.float32([0, 9]))[1] for _ in range(6)]
    assert np.isfinite(normalised).all()


class FrameFile:
    """In place of MoviePy, whose releases cannot be installed beside the Pillow of this project."""

    def __init__(self, frames: list[np.ndarray], fps: float) -> None:
        self._frames, self._fps = frames, fps

    def write_videofile(self, path: str, logger: object) -> None:
        Path(path).write_bytes(encode_browser_video(np.stack(self._frames), fps=self._fps))


@pytest.mark.parametrize("mode", ["rgb_array", "rgb_array_list"])
def test_videos_are_recorded(tmp_path, monkeypatch, mode) -> None:
    writer = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    writer.ImageSequenceClip = FrameFile
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, writer.__name__, writer)
    env = gymnasium.wrappers.RecordVideo(make(render_mode=mode), str(tmp_path / "videos"))
    seen = [env.reset(seed=0)[0], *(env.step(action)[0] for action in moves(0, 6))]
    env.close()
    [video] = (tmp_path / "videos").glob("*.mp4")
    frames = decode_video(video)
    assert frames.shape == (7, 32, 32, 3)
    np.testing.assert_allclose(frames, np.stack(seen), atol=60)  # of 180 grey levels; lossy
    assert env.frames_per_sec == 5.0


def test_rendering() -> None:
    env = make(render_mode="rgb_array", world_model=toy(views=2), image=picture(3, 2))
    seen, _ = env.reset(seed=0)
    assert env.render().shape == (32, 64, 3)
    np.testing.assert_array_equal(env.render()[:, :32], seen)
    listed = make(render_mode="rgb_array_list")
    listed.reset(seed=0)
    listed.step(moves(0)[()])
    assert len(listed.render()) == 2
    assert listed.render() == []
    assert make().unwrapped.metadata["render_fps"] == 5.0


def test_a_window_shows_every_frame(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame", reason="it is not among the dependencies")
    env = make(render_mode="human")
    seen, _ = env.reset(seed=0)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    np.testing.assert_array_equal(shown[::12, ::12], seen)
    assert env.render() is None
    env.close()


def test_a_missing_pygame_is_told_in_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(UserError, match="a window needs pygame; install it, or use render_mode='rgb_array'"):
        make(render_mode="human")


def stepped(action, **options) -> None:
    env = WorldModelVectorEnv(1, **toy_options(**options))
    env.reset(seed=0)
    env.step(np.asarray(action))


def loaded(change, tmp_path, **options) -> None:
    envs = WorldModelVectorEnv(1, **toy_options())
    envs.reset(seed=0)
    saved = envs.save_state()
    change(saved)
    WorldModelVectorEnv(**{"num_envs": 1, **toy_options(**options)}).load_state(saved)


def of_another_checkpoint(token_job, tmp_path) -> None:
    """The same sizes and actions, other weights."""
    import shutil

    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(token_job, other)
    weights = load_file(other / "world_model/model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, other / "world_model/model.safetensors", {"format": "pt"})
    envs = WorldModelVectorEnv(1, **token_options(token_job))
    envs.reset(seed=0)
    WorldModelVectorEnv(1, **token_options(other)).load_state(envs.save_state())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved_picture(path: Path, *size: int) -> Path:
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return path


BAD = {
    "unknown option": (lambda job, tmp: make(wrold_model="x"), "did you mean 'world_model'"),
    "no world model there": (lambda job, tmp: make(world_model=tmp / "no"), "no"),
    "no world model at all": (lambda job, tmp: make(world_model=3), "world_model: is of type int"),
    "horizon of nothing": (lambda job, tmp: make(horizon=0), "horizon: is 0"),
    "observation": (lambda job, tmp: make(observation="pixels"), "observation: is 'pixels'; rgb or dict"),
    "no bounds": (lambda job, tmp: make(action_bounds=None), "give action_bounds=(low, high)"),
    "bounds of other dimensions": (lambda job, tmp: make(action_bounds=([0], [1])), "have 2 dimensions"),
    "bounds that are no pair": (lambda job, tmp: make(action_bounds=[0, 1, 2]), "are not (low, high)"),
    "image of another size": (
        lambda job, tmp: make(image=saved_picture(tmp / "a.png", 20, 40)),
        "image: is of shape [20, 40, 3], the world model takes [1, 32, 32, 3]; resize it first",
    ),
    "image of floats": (lambda job, tmp: make(image=np.zeros((32, 32, 3))), "image: is float64, not uint8"),
    "damaged image": (lambda job, tmp: make(image=write(tmp / "a.png", b"\x89PNG")), "cannot be decoded"),
    "no image there": (lambda job, tmp: make(image=tmp / "none.png"), "no picture here"),
    "goal without reward": (lambda job, tmp: make(goal=picture(1)), "goal: no reward looks at it"),
    "fidelity without goal": (lambda job, tmp: make(reward="fidelity"), "give goal="),
    "unknown reward": (lambda job, tmp: make(reward="judgd"), "did you mean 'judged'"),
    "reward of another type": (lambda job, tmp: make(reward=3.5), "reward: is of type float"),
    "reward's setting": (lambda job, tmp: make(reward={"judged": {"weights": 1, "weight": 1}}), "weights"),
    "judge without a sentence": (
        lambda job, tmp: make(reward="judged"),
        "the judge needs a sentence; give instruction=",
    ),
    "no judge there": (
        lambda job, tmp: make(reward="judged", judge=tmp, instruction="go"),
        "no student judge here",
    ),
    "success without reward": (lambda job, tmp: make(success=3.0), "success: is a bound"),
    "a reward that fails": (
        lambda job, tmp: stepped([[0, 0]], reward={"toy_planning:colum": {"weight": 1}}),
        "did you mean 'column'",
    ),
    "a reward without the continuation that it needs": (
        lambda job, tmp: stepped([[0, 0]], reward={"test_env:Needs": {"weight": 1}}),
        "cannot score step 1 (test_env:Needs: no real continuation)",
    ),
    "two starts": (lambda job, tmp: make(state=tmp), "cannot both be where episodes begin"),
    "no store there": (lambda job, tmp: make(image=None, store=tmp), "no episode store here"),
    "unknown split": (
        lambda job, tmp: make(image=None, store=job / "store", split="test"),
        "split: no split 'test'; train or held_out",
    ),
    "unknown episode": (
        lambda job, tmp: make(image=None, store=job / "store", windows="toy/99@0"),
        "windows: no episode 'toy/99'",
    ),
    "frame behind the episode's end": (
        lambda job, tmp: make(image=None, store=job / "store", windows="toy/01@10"),
        "no frame 10, the episode has 10",
    ),
    "no window": (
        lambda job, tmp: make(image=None, store=job / "store", windows="toy"),
        "write episode@frame",
    ),
    "store of another robot": (
        lambda job, tmp: gymnasium.make(ID, **token_options(job, store="shipped")),
        "actions have 4 dimensions in the store, 2 in the model",
    ),
    "action that is not finite": (lambda job, tmp: stepped([[0, np.nan]]), "is not finite"),
    "action out of bounds": (
        lambda job, tmp: stepped([[0, 1.5]]),
        "action 0: dimension 1 is 1.5, outside -1 to 1; clip it",
    ),
    "action of another shape": (lambda job, tmp: stepped([0, 0]), "actions: are of shape [2], not [1, 2]"),
    "a step before reset": (
        lambda job, tmp: WorldModelVectorEnv(1, **toy_options()).step(np.zeros((1, 2))),
        "has not begun; call reset first",
    ),
    "negative seed": (lambda job, tmp: make().reset(seed=-1), "seed: is -1"),
    "seeds of another number": (
        lambda job, tmp: WorldModelVectorEnv(2, **toy_options()).reset(seed=[1]),
        "seed: 1 for 2 sub-environments",
    ),
    "mask of another shape": (
        lambda job, tmp: WorldModelVectorEnv(2, **toy_options()).reset(options={"reset_mask": [True, False]}),
        "not bool [2]",
    ),
    "no sub-environments": (lambda job, tmp: WorldModelVectorEnv(0, **toy_options()), "num_envs: is 0"),
    "render mode": (
        lambda job, tmp: WorldModelVectorEnv(1, render_mode="human", **toy_options()),
        "render_mode: is 'human'; rgb_array or rgb_array_list",
    ),
    "automatic reset": (
        lambda job, tmp: WorldModelVectorEnv(1, autoreset_mode="SomeStep", **toy_options()),
        "autoreset_mode: is 'SomeStep'",
    ),
    "no row to branch": (
        lambda job, tmp: WorldModelVectorEnv(1, **toy_options()).branch([4], 2),
        "no sub-environment 4 among 1",
    ),
    "state of another checkpoint": (of_another_checkpoint, "is of another checkpoint"),
    "state of another model": (
        lambda job, tmp: loaded(lambda saved: None, tmp, world_model=toy(views=2), image=picture(1, 2)),
        "is of another world model",
    ),
    "state of another number": (
        lambda job, tmp: loaded(lambda saved: None, tmp, num_envs=2),
        "is of 1 sub-environments, there are 2",
    ),
    "state without a part": (
        lambda job, tmp: loaded(lambda saved: saved.pop("episode0_frames"), tmp),
        "is no state of an environment",
    ),
    "a file that is no state": (
        lambda job, tmp: make(image=None, state=write(tmp / "state.npz", b"PK\x03\x04nothing")),
        "cannot be read as state of an environment",
    ),
    "an archive of something else": (lambda job, tmp: make(image=None, state={}), "is no state"),
}


class Needs:
    """A reward that compares with the real continuation."""

    def score(self, inputs):
        from roboalign_ray.rewards.protocol import Failed

        return [Failed("no real continuation")] * len(inputs.generated)


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_told_in_one_line(kind, token_job, tmp_path) -> None:
    ask, expected = BAD[kind]
    with pytest.raises(UserError) as caught:
        ask(token_job, tmp_path)
    line = str(caught.value)
    assert expected in line
    assert "\n" not in line
