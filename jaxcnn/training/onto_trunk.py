"""What a network on a trunk takes of other weights: of its backbone as a classifier, or of another one on that trunk.

By the names of jaxcnn/models/README.md: a classifier's fully connected layers and heads have the same names in such a
network, and all else of it lies in `trunk`.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from jaxcnn import UserError

Shapes = Mapping[str, tuple[int, ...]]  # of arrays by path, such as "params/trunk/conv1/kernel"
_NO_TRUNK = re.compile(r"(fc\d*|head|aux\d*)$")  # modules of a classifier that come after its maps, or beside them


class Parts(NamedTuple):
    """Paths of arrays, as the network has them: those taken of the weights, those left, and those that begin afresh."""

    taken: tuple[str, ...]
    left: tuple[str, ...]
    new: tuple[str, ...]


def has_trunk(paths: Collection[str]) -> bool:
    """Return whether arrays of these paths are those of a network on a trunk."""
    return any(path.split("/")[1] == "trunk" for path in paths)


def renamed(saved: Collection[str]) -> dict[str, str]:
    """Return {path in a network on a trunk: path in the weights}, of the weights of such a network or a classifier."""
    if has_trunk(saved):
        return {path: path for path in saved}
    found = {}
    for path in saved:
        collection, module, rest = path.split("/", 2)
        found[path if _NO_TRUNK.match(module) else f"{collection}/trunk/{module}/{rest}"] = path
    return found


def divide(source: str, saved: Shapes, wanted: Shapes, heads: bool) -> Parts:
    """Return what is taken, left and new.

    Args:
      source: where the weights are, for the error.
      saved: shapes of the weights, under the paths that `renamed` gives.
      wanted: shapes of the network.
      heads: whether class scores are taken; a classifier's are those of other classes.

    Raises:
      UserError: the trunks are not the same.
    """
    fits = [path for path, shape in wanted.items() if saved.get(path) == shape]
    others = [path for path in {**wanted, **saved} if path.split("/")[1] == "trunk" and path not in fits]
    for path in sorted(others, key=lambda path: not path.endswith("/kernel")):  # a kernel's shape says the most
        there, here = saved.get(path, "missing"), wanted.get(path, "missing")
        raise UserError(
            f"{source} is of another backbone: {path} is {there} there, {here} in this run: set "
            "config.model.overrides.backbone to that of the weights, and its width, or take other weights"
        )
    taken = tuple(path for path in fits if heads or path.split("/")[-2] != "head")
    return Parts(taken, tuple(saved.keys() - {*taken}), tuple(path for path in wanted if path not in {*taken}))


def describe(source: str, parts: Parts, saved: Shapes, wanted: Shapes) -> str:
    """Return a line that says what was taken, left and made new, module by module."""
    words = f"{source}: took {_modules(parts.taken, parts.new)} ({len(parts.taken)} arrays)"
    words += f"; left {_modules(parts.left, parts.taken)}; made new {_modules(parts.new, parts.taken)}"
    # Of the same name and another shape, such as fc6 of other images; of a head that goes without saying.
    others = [path for path in parts.new if path in saved and path.endswith("/kernel") and "/head/" not in path]
    return words + "".join(f"; {path} is {saved[path]} there, {wanted[path]} here" for path in others[:1])


def _modules(paths: Collection[str], others: Collection[str]) -> str:
    """Return the names of the modules of some arrays; those within a module that has some of the others, too."""
    divided = {path.split("/")[1] for path in others}
    names = sorted(path.split("/")[1:-1] for path in paths)
    return ", ".join(dict.fromkeys("/".join(name) if name[0] in divided else name[0] for name in names)) or "nothing"
