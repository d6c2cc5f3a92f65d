"""Who may import whom, and what must not be loaded to print a help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcnn
from jaxcnn.cli import COMMANDS

ROOT = Path(jaxcnn.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PARTS = {p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}

# Modules that are parts of their own: tasks draw with them, and they import nothing else of ours.
APART = {"figures/overlays", "figures/confusion"}
# Part -> the other parts it may import. "" is the root package, UserError and the version; these are anyone's, and what
# it names of the Python API for type checkers is loaded when it is asked for.
ANYONE = {
    "",
    "compat",
    "config",
    "configfile",
    "locations",
    "safe_files",
    "safe_pickle",
    "stores",
    "text_table",
    "warping",
}
ALLOWED: dict[str, set[str]] = {
    "": {"models", "training"},
    "compat": set(),
    "config": set(),
    "configfile": set(),
    "locations": set(),
    "safe_files": set(),
    "safe_pickle": set(),
    "stores": set(),
    "text_table": set(),
    "warping": set(),
    "data": set(),
    "distributed": set(),
    "models": set(),
    "weights": {"models"},
    "tasks": {"models", "figures/overlays", "figures/confusion"},
    "training": {"models", "tasks", "data", "distributed", "weights"},
    "rcnn": {"models", "tasks", "training", "data", "weights"},
    "scaling": {"models", "tasks", "training", "data"},
    "papers": {"models", "tasks", "training"},
    "figures": {"models", "tasks", "training", "papers", "figures/overlays", "figures/confusion"},
    "figures/overlays": set(),
    "figures/confusion": {"figures/overlays"},
    "commands": {
        *("models", "tasks", "training", "data", "distributed", "weights"),
        *("rcnn", "scaling", "papers", "figures", "figures/overlays", "figures/confusion"),
    },
    "cli": {"commands"},
}


def part_of(path: Path) -> str:
    """The part that a file of ours belongs to."""
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if (module := str(path.relative_to(ROOT).with_suffix(""))) in APART:
        return module
    return "" if name == "__init__" else name


def imported_parts(source: str, package: str = "jaxcnn") -> set[str]:
    """The parts of ours that `source`, a module of `package`, imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{module}.{name.name}" for name in node.names}
    ours = [name.split(".") for name in names if name.split(".")[0] == "jaxcnn"]
    apart = {"/".join(words[1:3]) for words in ours} & APART
    others = [words for words in ours if "/".join(words[1:3]) not in APART]
    return apart | {words[1] if len(words) > 1 and words[1] in PARTS else "" for words in others}


@pytest.mark.parametrize(
    ("source", "package", "parts"),
    [
        ("import jax", "jaxcnn", set()),
        ("import jaxcnn", "jaxcnn", {""}),
        ("from jaxcnn import UserError, models", "jaxcnn", {"", "models"}),
        ("import jaxcnn.data.sources as s", "jaxcnn", {"data"}),
        ("def f():\n  from jaxcnn.training.step import x", "jaxcnn", {"training"}),
        ("if 1:\n  from ..training import step", "jaxcnn.models", {"training"}),
        ("from .. import tasks", "jaxcnn.models", {"tasks"}),
        ("from . import layers", "jaxcnn.models", {"models"}),
        ("from .layers import conv", "jaxcnn.models", {"models"}),
        ("from jaxcnn.figures.overlays import heat_cards", "jaxcnn", {"figures/overlays"}),
        ("def f():\n  from jaxcnn.figures import curves, overlays", "jaxcnn", {"figures", "figures/overlays"}),
    ],
)
def test_every_form_of_import_is_seen(source, package, parts):
    assert imported_parts(source, package) == parts


def test_the_arrow_knows_every_part():
    assert (PARTS - {"__init__"}) | APART == ALLOWED.keys() - {""}
    assert {part_of(path) for path in FILES} == ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_along_the_arrow(path):
    part = part_of(path)
    package = ".".join(["jaxcnn", *path.relative_to(ROOT).parent.parts])
    assert imported_parts(path.read_text(), package) <= ALLOWED[part] | (set() if part in APART else ANYONE | {part})


# Prints the packages of `banned` that were loaded, or that someone tried to load, after `statement`.
PROBE = """
import sys
banned, wanted = {banned!r}, set()
class Watch:
    def find_spec(name, path=None, target=None):
        wanted.update({{name}} & banned)
sys.meta_path.insert(0, Watch)
try:
    {statement}
except SystemExit:
    pass
print("wanted:", *sorted(wanted))
"""


def wanted(statement: str, *banned: str) -> list[str]:
    probe = PROBE.format(banned=set(banned), statement=statement)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()[-1].removeprefix("wanted:").split()


def test_the_probe_sees_what_is_loaded():
    assert wanted("import colorsys", "colorsys", "jax") == ["colorsys"]


HEAVY = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax",
    "grain",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "fsspec",
)


@pytest.mark.parametrize(
    "statement",
    [
        "import jaxcnn, jaxcnn.cli",
        "import jaxcnn; dir(jaxcnn); hasattr(jaxcnn, 'nonsense')",
        "from jaxcnn.cli import main; main(['--help'])",
        "from jaxcnn.cli import main; main(['--version'])",
        "from jaxcnn.cli import main; main(['nonsense'])",
        *(f"from jaxcnn.cli import main; main(['{command}', '--help'])" for command in COMMANDS),
    ],
)
def test_help_loads_nothing_heavy(statement):
    assert wanted(statement, *HEAVY) == []


def test_the_config_alone_loads_no_jax():
    assert wanted("import jaxcnn.config", "jax", "flax", "tensorflow") == []


def test_what_trains_loads_no_tensorflow():
    modules = [".".join(["jaxcnn", *p.relative_to(ROOT).with_suffix("").parts]) for p in FILES if p.stem != "__init__"]
    imports = "import " + ", ".join(modules)
    assert wanted(imports, "tensorflow", "jax") == ["jax"]
