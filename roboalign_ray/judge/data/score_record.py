"""What a folder of scores is of: its input and its judges. Another job is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roboalign_ray.config.resume import differences
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import flush, whole_file
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.foundation.storage.shards import write_json

SCHEMA_VERSION = 1
RECORD = "scoring.json"
_OF_INPUT = ("input", "view", "video_column")


@dataclass(frozen=True)
class JudgeIdentity:
    """What a judge's scores depend on.

    Attributes:
        name: "student", or the teacher's name.
        version: version of a student; None for a teacher.
        digest: hash of weights and settings.
        settings: its settings (JSON types), to name what changed.
    """

    name: str
    version: int | None
    digest: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ScoringRecord:
    """What a folder's scores are of.

    Attributes:
        input, view, video_column: the input.
        judges: the judges, in order.
    """

    input: str
    view: str
    video_column: str
    judges: Sequence[JudgeIdentity]

    def check(self, folder: Path, *, rescore: bool) -> bool:
        """Whether the folder's scores are by other judges; False also where it holds none.

        Args:
            rescore: whether that is allowed.

        Raises:
            UserError: the folder holds scores of another input, or of other judges and that is not allowed.
        """
        path = folder / RECORD
        if not path.is_file():
            return False
        before, now = read_record(folder), self._content()
        for key in _OF_INPUT:
            if before[key] != now[key]:
                raise UserError(
                    f"holds scores of {key} '{before[key]}', not of '{now[key]}'",
                    where=str(folder),
                    remedy="choose another OUTPUT",
                )
        if before["judges"] == now["judges"]:
            return False
        if not rescore:
            raise UserError(
                f"was scored by another judge ({_changed(before['judges'], now['judges'])})",
                where=str(folder),
                remedy="choose another OUTPUT, or score all anew with --rescore",
            )
        return True

    def write(self, folder: Path) -> None:
        """Write the record."""
        with whole_file(folder / RECORD) as draft:
            write_json(draft, self._content())
            flush(draft)

    def _content(self) -> dict[str, Any]:
        judges = [asdict(judge) for judge in self.judges]
        place = {key: getattr(self, key) for key in _OF_INPUT}
        return {"schema_version": SCHEMA_VERSION, **place, "judges": judges}


def read_record(folder: Path) -> dict[str, Any]:
    """What a folder's scores are of, as `ScoringRecord` wrote it.

    Raises:
        UserError: there is no record, or it cannot be read.
    """
    return read_object(folder / RECORD, "scoring record", keys=(*_OF_INPUT, "judges"))


def _changed(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    named = [" and ".join(str(judge["name"]) for judge in judges) for judges in (before, now)]
    if named[0] != named[1]:
        return f"{named[0]}; this is {named[1]}"
    lines = [
        change.line()
        for old, new in zip(before, now, strict=True)
        for change in differences(
            {**old, "digest": str(old["digest"])[:12]}, {**new, "digest": new["digest"][:12]}
        )
    ]
    settings = [line for line in lines if not line.startswith("digest")]
    return "; ".join((settings or lines)[:3])
