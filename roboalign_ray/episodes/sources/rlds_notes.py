"""Notes for the user about a whole RLDS dataset: missing shards, and features that are not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from roboalign_ray.episodes.action_kinds import listed
from roboalign_ray.episodes.sources.rlds_features import Feature
from roboalign_ray.episodes.sources.rlds_shards import Shards
from roboalign_ray.episodes.sources.rlds_texts import is_number


def dataset_notes(
    features: Mapping[str, Feature],
    shards: Shards,
    action: str,
    texts: Collection[str],
    labels: Collection[str],
) -> list[str]:
    """One line per note.

    Args:
        features: of features.json.
        shards: those present and missing.
        action: name of the action feature.
        texts: features that may hold the instruction.
        labels: those of them whose numbers a file explains.
    """
    missing = shards.missing
    lines = [f"{len(missing)} shards are missing, the first is {missing[0]}"] if missing else []
    lines += [f"split '{split}' has no shard here" for split in shards.absent_splits]
    lines += [
        f"{key}: pictures of {feature.dtype} {list(feature.shape)}, not of a colour camera, left out"
        for key, feature in features.items()
        if feature.kind == "image" and key.startswith("steps/") and not feature.is_camera
    ]
    lines += [
        f"{key}: {'a text' if feature.kind == 'text' else 'no numbers'}, left out of the action"
        for key, feature in features.items()
        if key.startswith(f"{action}/") and not feature.is_numeric
    ]
    lines += [
        f"{key}: holds numbers, and the dataset has no sentences for them; instructions stay empty"
        for key in texts
        if is_number(features[key]) and key not in labels
    ]
    if not texts:
        others = [key for key, feature in features.items() if feature.kind == "text"]
        rest = f"; texts by other names are not read: {listed(others)}" if others else ""
        lines.append(f"no feature is named as an instruction, instructions stay empty{rest}")
    return lines
