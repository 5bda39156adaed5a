"""What the columns of a dataset are to us: as our export says, or by the names that others use."""

from collections.abc import Mapping
from typing import Any

from user_system.codec import arrays
from user_system.core.errors import SpecError
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange.lerobot_form import Feature
from user_system.replay.exchange.parquet import IMAGE


def of_info(
    info: Mapping[str, Any], ours: Mapping[str, Any] | None
) -> tuple[list[Feature], dict[str, str]]:
    """Return the columns that are read, and why others are left out.

    Args:
        info: all of ``info.json``.
        ours: our part of it; None where it is not our export.

    Raises:
        SpecError: a column that every dataset has is not there, or one is nonsense.
    """
    stated = info.get("features")
    if not isinstance(stated, dict) or not all(isinstance(e, dict) for e in stated.values()):
        raise SpecError(f"{form.INFO}: features", got=str(stated)[:80], allowed="an object")
    ignored: dict[str, str] = {}
    features = form.parse_block(ours.get("features")) if ours is not None else []
    for key, entry in stated.items() if ours is None else ():
        found = foreign(key, entry)
        if isinstance(found, Feature):
            features.append(found)
        else:
            ignored[key] = found
    missing = {"action", *form.INDEX} - {feature.key for feature in features}
    if missing:
        raise SpecError("the dataset lacks columns", got=sorted(stated), allowed=sorted(missing))
    names = [feature.name for feature in features if feature.kind in ("field", "camera")]
    if doubled := {name for name in names if names.count(name) > 1}:
        what = "two columns are one observation of ours"
        raise SpecError(what, got=sorted(doubled), allowed="names that differ without prefix")
    return features, ignored


def foreign(key: str, entry: Mapping[str, Any]) -> Feature | str:
    """Return what a column of somebody else is to us, or why it is left out."""
    dtype, shape = entry.get("dtype"), form.parse_shape(entry.get("shape"))
    if shape is None or not isinstance(dtype, str):
        raise SpecError(f"feature {key!r}", got=str(entry)[:200], allowed="a dtype and a shape")
    tail = () if shape == (1,) else shape
    if key in form.INDEX:
        return Feature(key, "index", key, form.INDEX[key])
    if dtype in (IMAGE, form.VIDEO):
        return _camera(key, entry, dtype, shape)
    if dtype not in arrays.DTYPES:
        return f"of type {dtype}"
    if key == "action":
        if len(shape) != 1:
            raise SpecError("action", got=list(shape), allowed="[Da]")
        return Feature(key, "action", "", dtype, shape)
    if key == "next.reward":
        return Feature(key, "reward", "", dtype, tail)
    if key in ("next.done", "next.truncated", "next.success"):
        return Feature(key, "ends", key.partition(".")[2], dtype, tail)
    prefix, _, name = key.partition(".")
    if prefix == "observation" and name:
        return Feature(key, "field", name, dtype, tail)
    if prefix == "complementary_info" and name:
        return Feature(key, "extra", name, dtype, tail)
    return "no observation, action, reward or extra"


def _camera(
    key: str, entry: Mapping[str, Any], dtype: str, shape: tuple[int, ...]
) -> Feature | str:
    info = entry.get("info") or entry.get("video_info") or {}
    if isinstance(info, dict) and (info.get("is_depth_map") or info.get("video.is_depth_map")):
        return "a depth map, which is not stored as plain numbers"
    names = entry.get("names")
    if len(shape) != 3 or (dtype == form.VIDEO and 3 not in shape):
        raise SpecError(f"feature {key!r}", got=list(shape), allowed="[H, W, C]")
    if isinstance(names, list) and names and str(names[0]).startswith("channel"):
        shape = (shape[1], shape[2], shape[0])
    name = key.removeprefix("observation.").removeprefix("images.")
    return Feature(key, "camera", name, dtype, shape)
