"""The one place that knows which class a world model's folder is for.

    world_model/world_model.json     {"kind": "token", "tokenizer": "../tokenizer", "tokenizer_sha256": "…"}
                                            │
         built in ── entry point of the group roboalign_ray.world_models ── "module:attribute", from the user alone
                                            │
         open_world_model · open_decoder · read_weights · payload_type

A folder without the file is of kind "token". A folder cannot name code: its kind is looked up among what is built in
and installed. A kind that is given as "module:attribute" counts in this process alone.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from roboalign_ray.config import JobConfig, RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.plugins import Registry, lacks
from roboalign_ray.world_model.protocol import Decoder, ModelCard, Payload, WorldModel

DESCRIPTION = "world_model.json"
TOKEN = "token"
_WEIGHTS = "tokenizer.safetensors"
_SHIPPED = "shipped"  # stands for a folder inside the package


class WorldModelKind(Protocol):
    """What a kind of world model offers: a class that is never made an instance of.

    Attributes:
        payload: class of its rollouts' payloads; `payload.kind` is the name that the kind is registered under.
    """

    payload: type[Payload]

    @classmethod
    def check(cls, folder: Path, *, tokenizer: Path | None, config: JobConfig | None = None) -> ModelCard:
        """That the folder holds a whole model, from names, sizes and headers, in a moment.

        Args:
            config: the model must be the one that this job would pre-train; None accepts any.

        Raises:
            UserError: it does not, or is another.
        """
        ...

    @classmethod
    def open_model(
        cls, folder: Path, rollout: RolloutConfig, *, tokenizer: Path | None, device: str | None
    ) -> WorldModel:
        """The model, as weight version 0. `tokenizer` is None where the model has none; so is `device` by default.

        Raises:
            UserError: the folder cannot be read.
        """
        ...

    @classmethod
    def open_decoder(cls, folder: Path, *, tokenizer: Path | None, device: str | None) -> Decoder:
        """What decodes rollouts, without the weights that make them.

        Raises:
            UserError: the folder cannot be read.
        """
        ...

    @classmethod
    def read_weights(cls, folder: Path) -> Mapping[str, Any]:
        """Weights by name, as `WorldModel.load_weights` takes them.

        Raises:
            UserError: the folder cannot be read.
        """
        ...


WORLD_MODELS: Registry[type[WorldModelKind]] = Registry(
    "world_models",
    "world model",
    {TOKEN: "roboalign_ray.world_model.token.kind:TokenKind"},
    lacks("check", "open_model", "open_decoder", "read_weights"),
)
_named: dict[str, type[WorldModelKind]] = {}  # by the kind of their payloads


@dataclass(frozen=True)
class Description:
    """What a folder tells of itself.

    Attributes:
        kind: of world model.
        tokenizer: folder of its tokenizer, relative to its own; "shipped" for the one inside the package; None where it
            has none, or nobody wrote it down.
        tokenizer_sha256: of its weights.
    """

    kind: str = TOKEN
    tokenizer: str | None = None
    tokenizer_sha256: str | None = None


def open_world_model(
    folder: str | Path,
    rollout: RolloutConfig | None = None,
    *,
    tokenizer: str | Path | None = None,
    device: str | None = None,
    kind: str | None = None,
) -> WorldModel:
    """The world model in a folder, whatever its kind.

    Args:
        folder: as pre-training or alignment leave it; "shipped" for the one inside the package.
        rollout: refresh policy, sampling and precision; None takes the defaults.
        tokenizer: folder of its tokenizer; None takes the one that the folder remembers, or that lies beside it.
        device: where it runs; None takes a GPU where there is one.
        kind: name or "module:attribute"; None takes what the folder says.

    Raises:
        UserError: the folder cannot be read, or is of an unknown kind.
    """
    place = folder_of(folder)
    found = _kind(place, kind)
    where = _tokenizer(place, tokenizer)
    return found.open_model(place, rollout or RolloutConfig(), tokenizer=where, device=device)


def open_decoder(
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    device: str | None = None,
    kind: str | None = None,
) -> Decoder:
    """What decodes a world model's rollouts; arguments and errors as for `open_world_model`. Reads no large weights."""
    place = folder_of(folder)
    return _kind(place, kind).open_decoder(place, tokenizer=_tokenizer(place, tokenizer), device=device)


def read_weights(folder: str | Path) -> Mapping[str, Any]:
    """A folder's weights by name, as `WorldModel.load_weights` takes them.

    Raises:
        UserError: the folder cannot be read, or is of an unknown kind.
    """
    place = folder_of(folder)
    return _kind(place, None).read_weights(place)


def check_world_model(
    folder: str | Path, *, tokenizer: str | Path | None = None, config: JobConfig | None = None
) -> ModelCard:
    """That a folder holds a whole world model, without reading its weights; what it is.

    Args:
        config: the model must be the one that this job would pre-train; None accepts any.

    Raises:
        UserError: it does not, or is another.
    """
    place = folder_of(folder)
    return _kind(place, None).check(place, tokenizer=_tokenizer(place, tokenizer), config=config)


def payload_type(kind: str) -> type[Payload]:
    """The class of the payloads of a kind, as a file names it.

    Raises:
        UserError: no such kind is built in or installed.
    """
    if kind in _named:
        return _named[kind].payload
    return WORLD_MODELS.load_registered(kind).payload


def read_description(folder: Path) -> Description:
    """What a folder tells of itself; of kind "token" where it holds no description.

    Raises:
        UserError: the description cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return Description()
    told = read_object(path, "description of a world model")
    found = Description(told.get("kind", TOKEN), told.get("tokenizer"), told.get("tokenizer_sha256"))
    if not isinstance(found.kind, str) or not all(isinstance(v, str | None) for v in vars(found).values()):
        raise UserError("kind and tokenizer are not text", where=str(path))
    return found


def write_description(
    folder: Path, kind: str, tokenizer: Path | None = None, *, final: Path | None = None
) -> None:
    """Let a folder remember its kind and its tokenizer, so that it opens alone.

    Args:
        tokenizer: its folder.
        final: where the folder will lie, if it is written somewhere else first.
    """
    told = Description(kind)
    if tokenizer is not None:
        shipped = tokenizer.resolve() == _asset("tokenizer").resolve()
        named = _SHIPPED if shipped else os.path.relpath(tokenizer.resolve(), (final or folder).resolve())
        told = Description(kind, named, _weights_digest(tokenizer))
    text = json.dumps(asdict(told), indent=1) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def _kind(folder: Path, named: str | None) -> type[WorldModelKind]:
    if named is None:
        described = read_description(folder).kind
        return _named.get(described) or WORLD_MODELS.load_registered(described, str(folder / DESCRIPTION))
    found = WORLD_MODELS.load(named, "kind")
    if ":" in named:
        _named[found.payload.kind] = found
    return found


def _tokenizer(folder: Path, given: str | Path | None) -> Path | None:
    """Folder of the tokenizer: as given, as remembered, or the one beside; None where there is none.

    Raises:
        UserError: it holds other weights than the tokenizer that the world model was trained with.
    """
    told = read_description(folder)
    if given is not None:
        place = Path(given)
    elif told.tokenizer is not None:
        place = _asset("tokenizer") if told.tokenizer == _SHIPPED else (folder / told.tokenizer).resolve()
    else:
        place = folder.absolute().parent / "tokenizer"
        if not place.is_dir():
            return None
    if (
        told.tokenizer_sha256
        and (place / _WEIGHTS).is_file()
        and _weights_digest(place) != told.tokenizer_sha256
    ):
        raise UserError(
            f"was trained with another tokenizer than {place}",
            where=str(folder),
            remedy=f"it remembers {told.tokenizer}",
        )
    return place


def _weights_digest(tokenizer: Path) -> str:
    with (tokenizer / _WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(folder: str | Path) -> Path:
    """The folder that a name stands for: "shipped" is the one inside the package."""
    return _asset("world_model") if str(folder) == _SHIPPED else Path(folder)


def _asset(name: str) -> Path:
    return Path(str(importlib.resources.files("roboalign_ray") / "assets" / name))
