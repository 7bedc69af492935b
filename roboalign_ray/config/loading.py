"""Loads a profile with overrides as one checked `JobConfig`.

    profile file ──extends──► its base ──extends──► …        merged from the base up, section by section
         └── overrides "alignment.updates=5"                 laid on top, typed as YAML
               └── JobConfig                                 unknown key, wrong type, broken rule: one `ConfigError`

Every key has the file and line that it comes from, for messages. Imports neither torch nor ray.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from roboalign_ray.config.base import ConfigError, FrozenConfig
from roboalign_ray.config.complaints import dotted, first_complaint
from roboalign_ray.config.job import JobConfig
from roboalign_ray.config.paths import with_absolute_paths
from roboalign_ray.config.yaml_source import Located, parse_mapping, parse_value, read_mapping
from roboalign_ray.foundation.machine_paths import shareable

_SUFFIXES = (".yaml", ".yml")


def load_job(profile: str, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a profile and overrides, with every value as it was written.

    Args:
        profile: one of `profile_names()`, or a path ending in .yaml or .yml.
        overrides: "dotted.key=value" each, with the value in YAML ("tokenizer.channels=[96,160]"); the last one wins.

    Raises:
        ConfigError: the profile is not found or not YAML, its `extends` are circular, a key is unknown, a value
            has the wrong type, or a rule across fields is violated. One line, with file and line if known.
    """
    merged = _read_chain(profile)
    values, origins = merged.values, merged.origins
    for override in overrides:
        path, value = parse_override(override)
        origin = f"override '{override}'"
        over = _nested(path, value)
        _check_keys(Located(over, {path: origin}, origin))
        values = _merge(JobConfig, values, over)
        origins = {**origins, path: origin}
    values.setdefault("name", merged.file.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml"))
    return _validate(values, origins, profile)


def resolve_job(profile: str, overrides: Sequence[str] = ()) -> JobConfig:
    """`load_job` with absolute paths, relative to the current folder, for a command that runs here.

    Raises:
        ConfigError: as `load_job`; or the current folder, or the home folder in a path, does not exist.
    """
    return with_absolute_paths(load_job(profile, overrides))


def parse_override(text: str) -> tuple[str, Any]:
    """("alignment.updates", 5) from "alignment.updates=5".

    Raises:
        ConfigError: there is no "=" or no key, or the value is not YAML.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if path == "extends":
        raise ConfigError("extends belongs in a profile file", where=f"override '{text}'")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ConfigError(
            f"'{text}' is not key=value", where="override", remedy="write for example alignment.updates=5"
        )
    return path, parse_value(value, f"override '{text:.200}'")


def profile_names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    folder = _profile_folder()
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return sorted(name.removesuffix(".yaml") for name in names)


def dump_yaml(config: FrozenConfig) -> str:
    """The whole tree as YAML that `load_job` reads back to an equal config, except that secrets in URIs are masked."""
    return _dump(config.public())


def dump_shareable(config: FrozenConfig) -> str:
    """As `dump_yaml`, with absolute paths shortened to their last name, for files that may leave this machine."""
    return _dump(shareable(config.public()))


def _dump(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def known_paths(model: type[FrozenConfig] = JobConfig, prefix: str = "") -> Iterator[str]:
    """Dotted paths of every section and value below `model`."""
    for name in model.model_fields:
        path = f"{prefix}{name}"
        yield path
        if section := model.section(name):
            yield from known_paths(section, f"{path}.")


# --- finding and merging files ---------------------------------------------------------------------------------


def _profile_folder() -> Traversable:
    # Found by name at run time: the library never imports the package of the profiles.
    try:
        folder = resources.files("roboalign_ray") / "cluster_configs" / "profiles"
    except ModuleNotFoundError:
        folder = None
    if folder is None or not folder.is_dir():
        raise ConfigError(
            "no profiles are installed",
            where="cluster_configs",
            remedy="reinstall, or give the path of a .yaml file",
        )
    return folder


def _read(profile: str, base_folder: Path | None, named_by: str) -> tuple[str, Located]:
    """Identity (for cycles) and content of one profile; a relative path counts from `base_folder`."""
    if profile.endswith(_SUFFIXES):
        path = Path(profile).expanduser()
        path = path if base_folder is None else base_folder / path
        if not path.is_file():
            raise ConfigError(f"no such profile file: {path}", where=named_by)
        return str(path.resolve()), read_mapping(path, str(path))
    names = profile_names()
    if profile not in names:
        near = difflib.get_close_matches(profile, names, n=1, cutoff=0.5)
        remedy = f"did you mean '{near[0]}'?" if near else f"known profiles: {', '.join(names)}"
        raise ConfigError(
            f"unknown profile '{profile}'", where=named_by, remedy=f"{remedy} (or a path to a .yaml)"
        )
    text = (_profile_folder() / f"{profile}.yaml").read_text(encoding="utf-8")
    return profile, parse_mapping(text, f"cluster_configs/profiles/{profile}.yaml")


def _read_chain(profile: str) -> Located:
    """The profile merged over everything that it extends."""
    chain: list[Located] = []
    seen: list[str] = []
    folder: Path | None = None
    name, named_by = profile, "profile"
    while True:
        identity, located = _read(name, folder, named_by)
        if identity in seen:
            circle = " -> ".join([*seen[seen.index(identity) :], identity])
            raise ConfigError(f"extends runs in a circle: {circle}", where=named_by, remedy="cut one of them")
        seen.append(identity)
        extends = located.values.pop("extends", None)
        named_by = located.origins.pop("extends", located.file)
        _check_keys(located)
        chain.append(located)
        if extends is None:
            break
        if not isinstance(extends, str):
            raise ConfigError(
                f"extends is {extends!r}", where=named_by, remedy="name one profile or .yaml file"
            )
        name, folder = extends, Path(identity).parent if identity.endswith(_SUFFIXES) else None
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for located in reversed(chain):
        # `name` is not inherited: a profile that extends another one is named after its own file.
        values.pop("name", None)
        values = _merge(JobConfig, values, located.values)
        origins |= located.origins
    return Located(values, origins, chain[0].file)


def _merge(model: type[FrozenConfig], base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: sections key by key; values (also lists and mappings) are replaced as a whole."""
    merged = dict(base)
    for key, value in over.items():
        section = model.section(key)
        merged[key] = _merge(section, merged.get(key, {}), value) if section else value
    return merged


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(_keys(path)):
        value = {part: value}
    return value


def _keys(path: str) -> list[str]:
    """["reward", "my_pkg.rewards:Mine", "weight"] of "reward.my_pkg.rewards:Mine.weight"; other dots separate keys."""
    before, colon, after = path.partition(":")
    if not colon:
        return path.split(".")
    section, _, module = before.partition(".")
    attribute, *rest = after.split(".")
    return [section, f"{module}:{attribute}", *rest]


# --- checking --------------------------------------------------------------------------------------------------


def _check_keys(located: Located) -> None:
    _check_section(JobConfig, located.values, "", located)


def _check_section(
    model: type[FrozenConfig], values: Mapping[str, Any], prefix: str, located: Located
) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        where = located.origins.get(path, located.file)
        if not model.knows(str(key)):
            remedy = model.replaced.get(key) or _suggest(model, prefix, str(key), value)
            raise ConfigError(f"unknown key '{path}'", where=where, remedy=remedy)
        if section := model.section(key):
            if not isinstance(value, Mapping):
                keys = ", ".join(list(section.model_fields)[:4])
                raise ConfigError(
                    f"{path} is a section, not a value", where=where, remedy=f"set {keys}, … below it"
                )
            _check_section(section, value, f"{path}.", located)


def _suggest(model: type[FrozenConfig], prefix: str, key: str, value: Any) -> str:
    """The nearest known key, its siblings first, with its full dotted path."""
    siblings = [*model.known_keys(), *([] if prefix else ["extends"])]
    if near := difflib.get_close_matches(key, siblings, n=1, cutoff=0.6):
        suggestion = f"{prefix}{near[0]}"
        if (
            isinstance(value, Mapping) and len(value) == 1
        ):  # the inner key of an override: show the whole path
            rest = ".".join(_single_path(value))
            suggestion = (
                f"{suggestion}.{rest}" if f"{suggestion}.{rest}" in set(known_paths()) else suggestion
            )
        return f"did you mean '{suggestion}'?"
    elsewhere: dict[str, list[str]] = {}
    for path in known_paths():
        elsewhere.setdefault(path.rsplit(".", 1)[-1], []).append(f"'{path}'")
    if near := difflib.get_close_matches(key, list(elsewhere), n=1, cutoff=0.6):
        return f"did you mean {' or '.join(elsewhere[near[0]][:6])}?"
    return f"known keys here: {', '.join(sorted(siblings))}"


def _single_path(value: Any) -> list[str]:
    path = []
    while isinstance(value, Mapping) and len(value) == 1:
        key, value = next(iter(value.items()))
        path.append(str(key))
    return path


def _frozen(value: Any, path: str, origins: Mapping[str, str]) -> Any:
    """Lists as tuples for strict validation; infinite, undefined and huge numbers are rejected."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: expected a finite number, got {value}", where=origins.get(path, ""))
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{path}: expected an integer of at most 64 bits", where=origins.get(path, ""))
    if isinstance(value, list):
        return tuple(_frozen(item, path, origins) for item in value)
    if isinstance(value, Mapping):
        return {
            key: _frozen(item, f"{path}.{key}" if path else str(key), origins) for key, item in value.items()
        }
    return value


def _validate(values: dict[str, Any], origins: Mapping[str, str], profile: str) -> JobConfig:
    frozen = _frozen(values, "", origins)
    try:
        # Strict: "5" is not 5 and true is not 1, so that typing errors are found.
        return JobConfig.model_validate(frozen, strict=True)
    except ValidationError as error:
        raise _readable(error, origins, profile) from None
    except ConfigError as error:
        where = ": ".join(part for part in (f"profile '{profile}'", error.where) if part)
        raise ConfigError(error.what, where=where, remedy=error.remedy) from None


def _readable(error: ValidationError, origins: Mapping[str, str], profile: str) -> ConfigError:
    """The first of pydantic's errors in one line: origin, dotted path, expected, got."""
    place, message = first_complaint(error)
    names = [part for part in place if isinstance(part, str)]
    depths = range(len(names), 0, -1)
    origin = next(
        (origins[key] for n in depths if (key := ".".join(names[:n])) in origins), f"profile '{profile}'"
    )
    return ConfigError(f"{dotted(place)}: {message}", where=origin)
