"""Extensions by name: rewards, objectives, world models, planners, costs, episode sources and judges.

    "fidelity"               built in: loaded when it is first asked for
    "smoothness"             an installed package's entry point, of the group roboalign_ray.rewards (or .objectives, …)
    "my_pkg.rewards:Mine"    an attribute of any module that can be imported

Each room that can be extended makes one `Registry`, which gives classes or functions; how they are called is that
room's affair. A name of the third kind runs the code that it names, so it is taken from the user alone: from a profile
or the command line. Names out of data and checkpoint files go to `load_registered`, which refuses it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from roboalign_ray.foundation.failures import UserError, first_line, nearest_key, raise_if_host

KINDS = ("rewards", "objectives", "world_models", "planners", "costs", "episode_sources", "judges")
_IMPORT_PATH = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*)")
_ON_THE_PATH = "install its package, or put its folder on PYTHONPATH"

Plugin = TypeVar("Plugin")


@dataclass(frozen=True)
class Registry(Generic[Plugin]):
    """The extensions of one kind.

    Attributes:
        kind: one of `KINDS`; entry points stand in the group "roboalign_ray.<kind>".
        noun: how messages call one of them ("reward").
        builtin: name to "module:attribute".
        fault: says what an object lacks to be one of them; None for nothing. `lacks` makes one for classes.
    """

    kind: str
    noun: str
    builtin: Mapping[str, str]
    fault: Callable[[Any], str | None]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no kind of extension: {self.kind}")

    def names(self) -> list[str]:
        """Built-in and installed names, sorted."""
        return sorted({*self.builtin, *installed(self.kind)})

    def load(self, name: str, where: str = "") -> Plugin:
        """The class or function of a name that the user gave: built-in, installed, or "module:attribute".

        Args:
            where: the setting or option that the name stands in, for messages.

        Raises:
            UserError: the name is unknown or stands for two things, its module cannot be imported, the attribute is
                missing, or it has the wrong interface.
        """
        if ":" not in name:
            return self.load_registered(name, where)
        return self._checked(name, name, where)

    def load_registered(self, name: str, where: str = "") -> Plugin:
        """As `load`, of a name that a file may have brought: built-in or installed, never "module:attribute".

        Raises:
            UserError: as `load`; or the name is an import path.
        """
        found = installed(self.kind).get(name, [])
        if len(found) + (name in self.builtin) > 1:
            owners = [*(["roboalign_ray"] if name in self.builtin else []), *map(_package_of, found)]
            raise UserError(
                f"the {self.noun} '{name}' is registered by {' and by '.join(owners)}",
                where=where,
                remedy="uninstall one of them, or name the one you mean as module:attribute",
            )
        if name in self.builtin:
            return self._checked(name, self.builtin[name], where)
        if found:
            return self._checked(name, found[0].value, where)
        remedy = nearest_key(name, self.names())
        raise UserError(f"unknown {self.noun} '{name}'", where=where, remedy=remedy)

    def _checked(self, name: str, path: str, where: str) -> Plugin:
        plugin = import_attribute(path, where, lambda found: self.fault(found) is None)
        if (fault := self.fault(plugin)) is not None:
            raise UserError(f"'{name}' is no {self.noun}: it {fault}", where=where)
        return cast(Plugin, plugin)


def installed(kind: str) -> dict[str, list[EntryPoint]]:
    """Entry points of a kind by name, as installed packages tell them; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=f"roboalign_ray.{kind}"):
        found.setdefault(entry.name, []).append(entry)
    return found


def is_import_path(name: str) -> bool:
    """Whether a name is "module:attribute" in form."""
    return _IMPORT_PATH.fullmatch(name) is not None


def import_attribute(path: str, where: str = "", fits: Callable[[Any], bool] = callable) -> Any:
    """What "module:attribute" names. Runs the module's code.

    Args:
        where: the setting or option that the path stands in, for messages.
        fits: which of the module's own classes and functions could be meant, where the attribute is missing.

    Raises:
        UserError: the text has another form, the module is not found or fails, or it has no such attribute.
        HostError: the machine stopped the import.
    """
    match = _IMPORT_PATH.fullmatch(path)
    if match is None:
        raise UserError(
            f"'{path}' is no import path", where=where, remedy="write module:attribute, my_pkg.rewards:Mine"
        )
    module, attribute = match["module"], match["attribute"]
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise_if_host(error, where=module)
        raise _import_fault(module, error, where) from error
    if not hasattr(loaded, attribute):
        own = [
            name
            for name, value in vars(loaded).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module and fits(value)
        ]
        remedy = nearest_key(attribute, own, known="it has") if own else "nothing in it would fit"
        raise UserError(f"module '{module}' has no '{attribute}'", where=where, remedy=remedy)
    return getattr(loaded, attribute)


def lacks(*methods: str) -> Callable[[Any], str | None]:
    """A `Registry.fault`: the object must be a class with these methods, none of its own left abstract."""

    def fault(plugin: Any) -> str | None:
        if not isinstance(plugin, type):
            return f"is of type {type(plugin).__name__}, not a class"
        missing = [method for method in methods if not callable(getattr(plugin, method, None))]
        if missing:
            return f"has no method {', '.join(missing)}"
        if inspect.isabstract(plugin):
            return f"leaves {', '.join(sorted(getattr(plugin, '__abstractmethods__', ())))} abstract"
        return None

    return fault


def _import_fault(module: str, error: BaseException, where: str) -> UserError:
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if missing and f"{module}.".startswith(f"{missing}."):
        return UserError(f"there is no module '{missing}'", where=where, remedy=_ON_THE_PATH)
    reason = f"{type(error).__name__}: {first_line(error)}"
    return UserError(f"module '{module}' cannot be imported ({reason[:300]})", where=where)


def _package_of(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
