"""A teacher behind an OpenAI-compatible server: vLLM's, or any other that accepts images.

Frames are sent without loss. vLLM's server takes them as one video with true times, so that it gets the same input as
the offline engine; other servers get single images. Only temporary failures are retried: a broken connection, a full
or failing server, a late answer.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.protocol import (
    Judgement,
    JudgeRequest,
    input_failure,
    judgement_of,
)
from roboalign_ray.judge.teacher.frames import ShownVideo, shown_video, size_limits
from roboalign_ray.judge.teacher.http_call import ServerError, call_json
from roboalign_ray.judge.teacher.model_sources import teacher_name
from roboalign_ray.judge.teacher.parsing import END_OF_THINKING
from roboalign_ray.judge.teacher.prompt import answer_grammar, answer_schema, prompt_text
from roboalign_ray.judge.teacher.prompt_contract import check_asking

_GREETING_S = 10.0  # limit for the list of models
_LEAST_ATTEMPT_S = 0.05


class ServerTeacher:
    """A teacher that sends its requests to a server.

    Args:
        config: the teacher's config; its `server` section gives the server.

    Attributes:
        name: the teacher's name in labels.

    Raises:
        UserError: no server answers at `server.url`, or it does not serve the model.
    """

    def __init__(self, config: TeacherConfig) -> None:
        self.config, self.server = config, config.server
        self.model = config.server.model or config.model
        self.name = teacher_name(self.model, None)
        check_asking(self.model, config)
        self._greet()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request, `server.concurrency` of them at a time."""
        with ThreadPoolExecutor(self.server.concurrency, thread_name_prefix="judge") as pool:
            return list(pool.map(self._judged, requests))

    def _judged(self, request: JudgeRequest) -> Judgement | Failed:
        if failure := input_failure(request):
            return failure
        config = self.config
        shown = shown_video(
            request.frames,
            request.fps,
            count=config.frames,
            pixels=config.pixels,
            factor=self.server.multiple,
        )
        body = chat_request(request.instruction, shown, config, self.model)
        ends = time.monotonic() + self.server.deadline_s
        try:
            reply = self._call_with_retries(body, ends)
            return judgement_of(answers_in(reply))
        except ServerError as error:
            return Failed(f"{request.name}: {error}", "server")

    def _call_with_retries(self, body: dict[str, Any], ends: float) -> dict[str, Any]:
        """Call the server, with retries up to the allowed number and the deadline."""
        pause = self.server.backoff_s
        for attempt in range(self.server.retries + 1):
            try:
                left = ends - time.monotonic()
                if left < _LEAST_ATTEMPT_S:
                    raise ServerError(f"no answer within {self.server.deadline_s:g} s", may_pass=False)
                return self._call("chat/completions", body, left)
            except ServerError as error:
                if not error.may_pass or attempt == self.server.retries:
                    raise
            time.sleep(max(0.0, min(pause, ends - time.monotonic())))
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _greet(self) -> None:
        try:
            served = self._call("models", None, min(_GREETING_S, self.server.deadline_s)).get("data")
        except ServerError as error:
            raise UserError(
                f"no working server at '{self.server.url}' ({error})",
                where="teacher.server.url",
                remedy="start one, or set the URL, which ends in /v1",
            ) from error
        listed = served if isinstance(served, list) else []
        names = [str(entry.get("id"))[:100] for entry in listed if isinstance(entry, dict)]
        if names and self.model not in names:
            raise UserError(
                f"the server has no model '{self.model}'",
                where="teacher.server.model",
                remedy=f"it has: {', '.join(names[:10])}",
            )

    def _call(self, path: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        key = os.environ.get(self.server.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return call_json(f"{self.server.url.rstrip('/')}/{path}", body, headers, timeout)


def chat_request(instruction: str, shown: ShownVideo, config: TeacherConfig, model: str) -> dict[str, Any]:
    """The body of a chat completion about one video."""
    server = config.server
    content = [*_pictures(shown, server.video_as), {"type": "text", "text": prompt_text(instruction, config)}]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "n": config.draws,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_new_tokens,
        "seed": config.seed,
    }
    if server.video_as == "video":
        times = shown.metadata()
        metadata = {key: times[key] for key in ("fps", "duration", "total_num_frames", "frames_indices")}
        body["media_io_kwargs"] = {"video": {**metadata, "num_frames": -1, "do_sample_frames": False}}
        if server.send_limits:
            limits = size_limits(config.frames, config.pixels, server.multiple)
            body["mm_processor_kwargs"] = {"do_sample_frames": False, "size": limits}
    if config.constrained is not False:
        if server.structured == "vllm":
            body["structured_outputs"] = {"grammar": answer_grammar(config)}
        elif server.structured == "openai":
            form = {"name": "judgement", "schema": answer_schema(config), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def answers_in(reply: dict[str, Any]) -> list[str]:
    """The raw answers of a chat completion; reasoning that the server separated is put back in front.

    Raises:
        ServerError: the completion holds no answer.
    """
    texts = []
    try:
        for choice in reply["choices"]:
            message = choice["message"]
            reasoning = message.get("reasoning") or message.get("reasoning_content")
            content = message.get("content") or ""
            if not isinstance(content, str):
                raise TypeError
            texts.append(f"{reasoning}\n{END_OF_THINKING}\n{content}" if reasoning else content)
    except (KeyError, TypeError, AttributeError):
        raise ServerError("the answer holds no choices", may_pass=False) from None
    return texts


def _pictures(shown: ShownVideo, video_as: str) -> list[dict[str, Any]]:
    encoded = [_png(frame) for frame in shown.frames]
    if video_as == "video":
        # vLLM's media type for a video of single images; each image is read by its own header.
        url = f"data:video/jpeg;base64,{','.join(encoded)}"
        return [{"type": "video_url", "video_url": {"url": url}}]
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}} for picture in encoded
    ]


def _png(frame: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
