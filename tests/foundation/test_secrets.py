"""No password or key of a URI reaches a message, a plan or a settings file."""

from __future__ import annotations

import json

import pytest

from roboalign_ray.config.loading import dump_yaml, load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.secrets import masked, masked_tree
from roboalign_ray.pipelines.capacity.plan import make_plan

SECRET = "hUsh0"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://me:{SECRET}@bucket/run", "s3://***@bucket/run"),
        (f"s3://{SECRET}@bucket", "s3://***@bucket"),
        (f"gs+https://u:{SECRET}%2F@host:80/a?b=c", "gs+https://***@host:80/a?b=c"),
        (
            f"s3://b/r?access_key=me&secret_key={SECRET}&region=x",
            "s3://b/r?access_key=***&secret_key=***&region=x",
        ),
        (f"https://h/v?X-Amz-Signature={SECRET}", "https://h/v?X-Amz-Signature=***"),
        (f"https://h/v?a=1&authToken={SECRET} went away", "https://h/v?a=1&authToken=*** went away"),
        (f"s3://me:a/{SECRET}/b@bucket/run", "s3://***@bucket/run"),
        (f"s3://me:a?{SECRET}#b@bucket/run", "s3://***@bucket/run"),
        (f"http:/me:{SECRET}@host/a.mp4", "http:/***@host/a.mp4"),
        (f"https://h/v#access_token={SECRET}", "https://h/v#access_token=***"),
        (f"https://h/v?pass={SECRET}", "https://h/v?pass=***"),
        ("http://host:80/path@2x.png", "http://host:80/path@2x.png"),
        ("http://host/path@2x.png", "http://host/path@2x.png"),
        ("mail me@example.org", "mail me@example.org"),
        ("ray://head:10001", "ray://head:10001"),
        ("two http://a:b@c and http://d:e@f", "two http://***@c and http://***@f"),
    ],
)
def test_only_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


def test_trees_keep_their_shape() -> None:
    tree = {"a": [1, (f"http://u:{SECRET}@h", None)], "b": {"c": 2.5}}
    assert masked_tree(tree) == {"a": [1, ("http://***@h", None)], "b": {"c": 2.5}}


def test_errors_mask_their_places() -> None:
    error = UserError("cannot be reached", where=f"s3://me:{SECRET}@bucket")
    assert error.line() == "s3://***@bucket: cannot be reached"
    assert SECRET not in str(error)


def test_a_plan_shows_no_secret() -> None:
    job = load_job("demo", [f"alignment.checkpoints=s3://me:{SECRET}@bucket/run"])
    assert job.alignment.checkpoints == f"s3://me:{SECRET}@bucket/run"
    assert SECRET not in dump_yaml(job)
    assert SECRET not in json.dumps(job.public())
    assert SECRET not in json.dumps(make_plan(job).as_json())
