"""Maps a world model's folder to the class of its kind. No other module does this.

    world_model/world_model.json     {"kind": "token", "tokenizer": "../tokenizer", "tokenizer_sha256": "…"}
                                            │
         built in ── entry point of the group roboalign_ray.world_models ── "module:attribute", only from the caller
                                            │
         open_world_model · open_decoder · read_weights · payload_type

A folder without the file is of kind "token". A folder cannot name code: its kind must be built in or installed. A kind
given as "module:attribute" is valid in this process only.
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
from roboalign_ray.config.paths import SHIPPED_WORLD_MODELS, shipped_or_folder
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.plugins import Registry, lacks
from roboalign_ray.world_model.protocol import Decoder, ModelCard, Payload, WorldModel

DESCRIPTION = "world_model.json"
TOKEN = "token"
_WEIGHTS = "tokenizer.safetensors"
_SHIPPED = "shipped"  # stands for a folder inside the package


class WorldModelKind(Protocol):
    """Interface of a kind of world model: a class that is not instantiated.

    Attributes:
        payload: class of its rollouts' payloads; `payload.kind` is the registered name of the kind.
    """

    payload: type[Payload]

    @classmethod
    def check(cls, folder: Path, *, tokenizer: Path | None, config: JobConfig | None = None) -> ModelCard:
        """Check that the folder holds a complete model, from names, sizes and headers only.

        Args:
            config: the model must be the one that this job would pre-train; None accepts any model.

        Raises:
            UserError: the model is incomplete, or is another one.
        """
        ...

    @classmethod
    def open_model(
        cls, folder: Path, rollout: RolloutConfig, *, tokenizer: Path | None, device: str | None
    ) -> WorldModel:
        """The model, as weight version 0. `tokenizer` is None if it has none; `device` None is the default.

        Raises:
            UserError: the folder cannot be read.
        """
        ...

    @classmethod
    def open_decoder(cls, folder: Path, *, tokenizer: Path | None, device: str | None) -> Decoder:
        """The decoder of rollouts, without the weights that generate them.

        Raises:
            UserError: the folder cannot be read.
        """
        ...

    @classmethod
    def read_weights(cls, folder: Path) -> Mapping[str, Any]:
        """Weights by name, as `WorldModel.load_weights` accepts them.

        Raises:
            UserError: the folder cannot be read.
        """
        ...


WORLD_MODELS: Registry[type[WorldModelKind]] = Registry(
    "world_models",
    "world model",
    {
        TOKEN: "roboalign_ray.world_model.token.kind:TokenKind",
        "diffusion": "roboalign_ray.world_model.diffusion.kind:DiffusionKind",
    },
    lacks("check", "open_model", "open_decoder", "read_weights"),
)
_named: dict[str, type[WorldModelKind]] = {}  # by the `kind` of their payloads


@dataclass(frozen=True)
class Description:
    """Content of `world_model.json`.

    Attributes:
        kind: kind of the world model.
        tokenizer: folder of its tokenizer, relative to its own; "shipped" for the one inside the package; None if it
            has none, or if it is unknown.
        tokenizer_sha256: checksum of the tokenizer's weights.
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
    """Open the world model in a folder, of any kind.

    Args:
        folder: folder from pre-training or alignment; "shipped" and "shipped_diffusion" are models inside the package.
        rollout: refresh policy, sampling and precision; None takes the defaults.
        tokenizer: folder of its tokenizer; None takes the one in the folder's description, or the folder beside it.
        device: device of the model; None takes a GPU if there is one.
        kind: name or "module:attribute"; None takes the kind in the folder's description.

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
    """Open the decoder of a world model's rollouts, without large weights. Arguments and errors: `open_world_model`."""
    place = folder_of(folder)
    return _kind(place, kind).open_decoder(place, tokenizer=_tokenizer(place, tokenizer), device=device)


def read_weights(folder: str | Path) -> Mapping[str, Any]:
    """A folder's weights by name, as `WorldModel.load_weights` accepts them.

    Raises:
        UserError: the folder cannot be read, or is of an unknown kind.
    """
    place = folder_of(folder)
    return _kind(place, None).read_weights(place)


def check_world_model(
    folder: str | Path, *, tokenizer: str | Path | None = None, config: JobConfig | None = None
) -> ModelCard:
    """Check that a folder holds a complete world model, without reading its weights. Return its card.

    Args:
        config: the model must be the one that this job would pre-train; None accepts any model.

    Raises:
        UserError: the model is incomplete, or is another one.
    """
    place = folder_of(folder)
    return _kind(place, None).check(place, tokenizer=_tokenizer(place, tokenizer), config=config)


def payload_type(kind: str) -> type[Payload]:
    """The class of the payloads of a kind that a file names.

    Raises:
        UserError: the kind is neither built in nor installed.
    """
    if kind in _named:
        return _named[kind].payload
    return WORLD_MODELS.load_registered(kind).payload


def read_description(folder: Path) -> Description:
    """A folder's description; of kind "token" if the folder has none.

    Raises:
        UserError: the description cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return Description()
    content = read_object(path, "description of a world model")
    found = Description(content.get("kind", TOKEN), content.get("tokenizer"), content.get("tokenizer_sha256"))
    if not isinstance(found.kind, str) or not all(isinstance(v, str | None) for v in vars(found).values()):
        raise UserError("kind and tokenizer are not text", where=str(path))
    return found


def write_description(
    folder: Path, kind: str, tokenizer: Path | None = None, *, final: Path | None = None
) -> None:
    """Write kind and tokenizer into a folder, so that it opens without further arguments.

    Args:
        tokenizer: folder of the tokenizer.
        final: later place of the folder, if it is moved after writing.
    """
    description = Description(kind)
    if tokenizer is not None:
        shipped = tokenizer.resolve() == _asset("tokenizer").resolve()
        named = _SHIPPED if shipped else os.path.relpath(tokenizer.resolve(), (final or folder).resolve())
        description = Description(kind, named, _weights_digest(tokenizer))
    text = json.dumps(asdict(description), indent=1) + "\n"
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
    """Folder of the tokenizer: the given one, the described one, or the one beside; None if there is none.

    Raises:
        UserError: its weights are not those that the world model was trained with.
    """
    described = read_description(folder)
    if given is not None:
        place = Path(given)
    elif described.tokenizer is not None:
        place = (
            _asset("tokenizer")
            if described.tokenizer == _SHIPPED
            else (folder / described.tokenizer).resolve()
        )
    else:
        place = folder.absolute().parent / "tokenizer"
        if not place.is_dir():
            return None
    if (
        described.tokenizer_sha256
        and (place / _WEIGHTS).is_file()
        and _weights_digest(place) != described.tokenizer_sha256
    ):
        raise UserError(
            f"was trained with another tokenizer than {place}",
            where=str(folder),
            remedy=f"it remembers {described.tokenizer}",
        )
    return place


def _weights_digest(tokenizer: Path) -> str:
    with (tokenizer / _WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(folder: str | Path) -> Path:
    """The folder that a name stands for; `SHIPPED_WORLD_MODELS` names those inside the package."""
    return shipped_or_folder(folder, SHIPPED_WORLD_MODELS)


def _asset(name: str) -> Path:
    return Path(str(importlib.resources.files("roboalign_ray") / "assets" / name))
