"""The JSON schema of profiles accepts what the loader accepts, and says what every key means."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.config.schema import described_keys, profile_schema
from roboalign_ray.pipelines.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILES = sorted((REPOSITORY / "cluster_configs/profiles").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    made = profile_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return made


def accepted(profile: dict[str, Any], schema: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(profile)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_of_the_package_are_valid_as_written_and_as_resolved(
    path: Path, schema: dict[str, Any]
) -> None:
    assert accepted(yaml.safe_load(path.read_text()), schema)
    assert accepted(load_job(path.stem).model_dump(mode="json"), schema)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alignment": {"updatse": 5}},
        {"alignement": {}},
        {"alignment": {"updates": "many"}},
        {"alignment": {"updates": 0}},
        {"rollout": {"refresh": {"policy": "swrr"}}},
        {"extends": 3},
        {"cluster": {"rollout": {"workers": -1}}},
    ],
)
def test_what_the_loader_refuses_the_schema_refuses(wrong: dict[str, Any], schema: dict[str, Any]) -> None:
    assert not accepted(wrong, schema)
    right = copy.deepcopy(wrong)
    for value in right.values():
        if isinstance(value, dict):
            value.clear()
    right.pop("extends", None)
    right.pop("alignement", None)
    assert accepted(right, schema)


def values_without_meaning(schema: dict[str, Any]) -> list[str]:
    parts = {"": schema, **schema["$defs"]}
    return [
        f"{section}.{key}"
        for section, part in parts.items()
        for key, field in part.get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    ]


def test_every_value_says_what_it_means(schema: dict[str, Any]) -> None:
    assert values_without_meaning(schema) == []


def test_a_meaning_of_several_lines_and_keys_is_read_whole() -> None:
    from roboalign_ray.config.base import FrozenConfig

    class Example(FrozenConfig):
        """A section.

        Attributes:
            one, two: a meaning
                of two lines.
            three: another: with a colon.
            unknown: no key of this section.

        More text: that is no key.
        """

        one: int = 1
        two: int = 2
        three: int = 3
        four: int = 4

    meaning = "a meaning of two lines."
    assert described_keys(Example) == {"one": meaning, "two": meaning, "three": "another: with a colon."}


def test_the_command_prints_it_and_shows_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert cli.run(["config", "schema", "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == printed == profile_schema()
    assert cli.run(["config", "show", "single_gpu", "--set", "alignment.updates=7"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert load_job(str(tmp_path / "shown.yaml")).alignment.updates == 7
    assert cli.run(["config", "show", "demo", "--json"]) == 0
    assert JobConfig.model_validate(json.loads(capsys.readouterr().out)).name == "demo"
