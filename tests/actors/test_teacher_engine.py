"""vLLM on a tiny Qwen3-VL: held answers, the same ones as transformers gives, in an actor and from a server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

from roboalign_ray.actors.teacher import TeacherActor  # noqa: E402
from roboalign_ray.config import RoleConfig, SmallTeacherConfig, TeacherConfig  # noqa: E402
from roboalign_ray.foundation.failures import Failed  # noqa: E402
from roboalign_ray.judge.protocol import Judgement, JudgeRequest  # noqa: E402
from roboalign_ray.judge.rubric import maxima  # noqa: E402
from roboalign_ray.judge.teacher.parsing import Answer, parse_answer  # noqa: E402
from roboalign_ray.judge.teacher.small import make_small_teacher  # noqa: E402

INSTRUCTIONS = ["open the drawer", "press the button", "reach the ball"]
BRIEF = {"opening": "", "rubric": "none", "closing": "", "describe_answer": False}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}


def config(**changes: Any) -> TeacherConfig:
    return TeacherConfig.model_validate(
        {
            "small": SmallTeacherConfig.tiny().model_dump(),
            "frames": 4,
            "pixels": 32 * 32,
            "reasoning": False,
            "precision": "float32",
            "max_new_tokens": 300,
            "rationale_characters": 20,
            "prompt": BRIEF,
            "engine": {"eager": True, "max_model_len": 1024},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("engine")
    make_small_teacher(config(), INSTRUCTIONS, place)
    return place


def requests() -> list[JudgeRequest]:
    """Videos of several lengths and shapes."""
    generator = np.random.default_rng(0)
    shapes = [(6, 32, 32), (3, 24, 48), (9, 64, 32)]
    clips = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    return [JudgeRequest(clip, 5.0, told) for clip, told in zip(clips, INSTRUCTIONS, strict=True)]


def texts(outcomes: list[Judgement | Failed]) -> list[tuple[str, ...]]:
    assert [outcome for outcome in outcomes if isinstance(outcome, Failed)] == []
    return [outcome.texts for outcome in outcomes if isinstance(outcome, Judgement)]


@pytest.fixture(scope="module")
def greedy(folder: Path) -> list[tuple[str, ...]]:
    """What transformers answers at temperature 0."""
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    return texts(TransformersTeacher(config(model=str(folder), temperature=0)).judge(requests()))


@pytest.fixture(scope="module")
def engine(folder: Path) -> TeacherActor:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return TeacherActor(config(backend="vllm", model=str(folder), temperature=0))


def test_vllm_and_transformers_answer_alike_at_temperature_0(
    engine: TeacherActor, greedy: list[tuple[str, ...]]
) -> None:
    assert texts(engine.judge(requests())) == greedy


def test_vllm_and_transformers_find_every_token_equally_likely(engine: TeacherActor, folder: Path) -> None:
    """Equal words may hide unequal numbers: the video's part in them is small in an untrained model."""
    from vllm import SamplingParams

    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    teacher = TransformersTeacher(config(model=str(folder), temperature=0))
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    for request in requests():
        shown, text = teacher.prompter.shown(request), teacher.prompter.text(request.instruction)
        inputs = teacher.prompter.inputs([text], [shown])
        ids = inputs["input_ids"][0]
        with torch.inference_mode():
            likely = teacher.model(**inputs).logits[0].log_softmax(-1)
        expected = likely[:-1].gather(1, ids[1:, None])[:, 0]
        video = (shown.frames, shown.metadata() | {"do_sample_frames": False})
        prompt = {"prompt": text, "multi_modal_data": {"video": [video]}}
        [output] = engine._teacher._engine.generate([prompt], sampling, use_tqdm=False)
        assert output.prompt_token_ids == ids.tolist()
        pairs = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
        found = [told[token].logprob for told, token in pairs]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_bad_video_costs_the_others_nothing(engine: TeacherActor, greedy: list[tuple[str, ...]]) -> None:
    short = JudgeRequest(np.zeros((1, 32, 32, 3), np.uint8), 5.0, "x")
    first, second, bad, third = engine.judge([*requests()[:2], short, requests()[2]])
    assert isinstance(bad, Failed)
    assert texts([first, second, third]) == greedy


def check_five(outcome: Judgement | Failed) -> None:
    """Five different answers, all of them readable, within the rubric."""
    assert isinstance(outcome, Judgement)
    assert outcome.samples.shape == (5, 6)
    assert outcome.failures == ()
    assert np.all((outcome.samples >= 0) & (outcome.samples <= maxima()))
    assert len(set(outcome.texts)) > 1
    np.testing.assert_allclose(outcome.std, outcome.samples.std(axis=0))


def test_an_engine_in_an_actor_draws_five_answers_that_fit_the_grammar(folder: Path) -> None:
    import ray

    from roboalign_ray.pipelines.label.teacher_pool import TeacherPool

    drawn = config(backend="vllm", model=str(folder), temperature=0.6, samples=5)
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    try:
        pool = TeacherPool(drawn, RoleConfig(num_cpus=1, deadline_s=600))
        outcomes = pool.judge(requests())
        pool.close()
    finally:
        ray.shutdown()
    for outcome in outcomes:
        check_five(outcome)


SCORES = [[2.5, 1, 0.5, 1, 0, 2], [0, 0.5, 1, 0, 0.5, 1]]


def taught(settings: TeacherConfig, place: Path) -> None:
    """A tiny model that knows two videos by heart, with its reasons."""
    from transformers import AutoProcessor

    from roboalign_ray.judge.data.pairs import JudgedPair
    from roboalign_ray.judge.teacher.learning import answer_batch, answer_loss
    from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, load_model

    make_small_teacher(settings, INSTRUCTIONS, place / "start")
    prompter = VideoPrompter(str(place / "start"), settings)
    model = load_model(str(place / "start"), "float32").train()
    pairs = [
        JudgedPair("p", "g", r.frames, r.fps, r.instruction, np.array(scores, np.float32), "test", "real")
        for r, scores in zip(requests(), SCORES, strict=False)
    ]
    batch = answer_batch(pairs, prompter, settings)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(200):
        loss, _ = answer_loss(model, batch)
        optimizer.zero_grad()
        (loss / batch.weights.sum()).backward()
        optimizer.step()
    model.save_pretrained(place / "taught")
    AutoProcessor.from_pretrained(place / "start").save_pretrained(place / "taught")


def test_reasoning_runs_free_and_the_answer_after_it_is_held(tmp_path: Path) -> None:
    """Word by word as with transformers, and with the scores that it learned."""
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    settings = config(reasoning=True, temperature=0, max_new_tokens=600, rationale_characters=200)
    taught(settings, tmp_path)
    settings = settings.model_copy(update={"model": str(tmp_path / "taught")})
    by_vllm = TeacherActor(settings.model_copy(update={"backend": "vllm"})).judge(requests()[:2])
    assert texts(by_vllm) == texts(TransformersTeacher(settings).judge(requests()[:2]))
    for outcome, scores in zip(by_vllm, SCORES, strict=True):
        assert isinstance(outcome, Judgement)
        answer = parse_answer(outcome.texts[0])
        assert isinstance(answer, Answer)
        assert answer.reasoning.count("\n") == 5  # one line per dimension
        assert answer.scores.tolist() == scores


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "small", "--port", str(port), "--host", "127.0.0.1"]
    command += [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "1024",
        "--trust-request-mm-kwargs",
    ]
    command += ["--limit-mm-per-prompt", '{"video": 1, "image": 0}']
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail((folder / "server.log").read_text()[-3000:])
            try:
                urllib.request.urlopen(f"{url}/models", timeout=2).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)  # it ends its engine itself
        log.close()


@pytest.mark.parametrize("send_limits", [True, False])
def test_a_vllm_server_answers_as_the_others_do(
    server: str, greedy: list[tuple[str, ...]], send_limits: bool
) -> None:
    """With the model's own limits too: they leave such small frames as they are."""
    section = {"url": server, "model": "small", "multiple": 16, "deadline_s": 300, "send_limits": send_limits}
    asked = TeacherActor(config(backend="openai", temperature=0, server=section))
    assert texts(asked.judge(requests())) == greedy


def test_a_vllm_server_draws_five_answers_that_fit_the_grammar(server: str) -> None:
    section = {"url": server, "model": "small", "multiple": 16, "deadline_s": 300}
    asked = TeacherActor(config(backend="openai", temperature=0.6, samples=5, server=section))
    for outcome in asked.judge(requests()):
        check_five(outcome)
