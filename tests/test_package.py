"""What is shipped: the layers, the dependencies, the symbols of the extension, the files that must agree."""

import ast
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

import tapeseal
from tapeseal import _core

ROOT = Path(__file__).parents[1]
PACKAGE = Path(tapeseal.__file__).parent

# Imports go down only: a module may import those of the rows above its own, and nothing beside or below.
LAYERS = [
    {"closing", "errors"},
    {"_core", "files", "layout"},
    {"audit", "datakey", "secret", "signature"},
    {"header"},
    {"blob", "body"},
    {"reader", "writer"},
    {"reserve", "rows", "tape", "transport"},
    {"archive", "metrics", "verification"},
    {"fleet", "kms", "recorder", "vault"},
    {"keyrings"},
    {"break_glass", "signing"},
    {"custody", "rotation"},
    {"audit_log"},
    {"doctor", "templates"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
EXTRAS = {
    *("boto3", "botocore"),
    *("hvac", "requests", "urllib3"),
    *("click", "detect_secrets", "rich"),
    *("exchange_calendars", "kubernetes", "prometheus_client", "psycopg", "tomli"),
    *("opentelemetry",),
}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def unit(module: str) -> str:
    """Return the name in LAYERS of a module's path: a package counts as one."""
    return module.split("/")[0].removesuffix(".py")


class WithoutTyping(ast.NodeTransformer):
    """Takes out what only a type checker sees."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return node.orelse
        return self.generic_visit(node)


@cache
def imports(module: str, *, typing: bool = True) -> set[str]:
    """Return the full names of all that a module imports, in functions too."""
    names = set()
    package = ["tapeseal", *Path(module).parent.parts]
    tree = ast.parse((PACKAGE / module).read_text())
    for node in ast.walk(tree if typing else WithoutTyping().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def tool(name: str, *arguments: str) -> str:
    """Return what one of the binutils prints about the extension."""
    if not shutil.which(name) or sys.platform != "linux":
        pytest.skip(f"{name} is needed to look into the extension")
    assert _core.__file__ is not None
    return subprocess.check_output([name, *arguments, _core.__file__], text=True)


def project(name: str) -> Path:
    """Return a file of the source tree, which tests of an installed wheel may lack."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not beside these tests")
    return path


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    """A module imports only from the layers under its own."""
    own = unit(module)
    assert own in LEVEL, f"{module} has no place in LAYERS"
    others = {name.split(".")[1] for name in imports(module) if name.startswith("tapeseal.")}
    others &= LEVEL.keys()  # what __init__ exports by name is no module
    assert {name for name in others if LEVEL[name] >= LEVEL[own] and name != own} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("keyrings/")])
def test_keyrings_never_see_a_record(module: str) -> None:
    """No keyring imports what handles records."""
    records = {"blob", "body", "reader", "writer", "tape", "archive", "rows", "recorder"}
    assert {
        name
        for name in imports(module)
        if unit(name.partition(".")[2].replace(".", "/")) in records
    } == set()


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_declared(module: str) -> None:
    """What a module imports is in the standard library, a dependency, or an extra of its layer."""
    allowed = sys.stdlib_module_names | {"tapeseal", "numpy", "cryptography"}
    if LEVEL[unit(module)] >= LEVEL["transport"]:
        allowed |= EXTRAS
    if module == "rows.py":
        allowed |= {"pyarrow"}  # where it is given one of its arrays
    used = {name.split(".")[0] for name in imports(module, typing=False)}
    assert used - allowed == set()


def test_import_is_light() -> None:
    """Importing the package loads no extra, and `cryptography` only when it is needed."""
    heavy = sorted(EXTRAS | {"cryptography", "pandas", "pyarrow"})
    code = f"import sys, tapeseal; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("command", ["rotation", "secrets", "kv", "doctor", "audit"])
def test_commands_are_light(command: str) -> None:
    """Importing the package, and a command that handles no tape, loads neither numpy nor what handles tapes."""
    code = f"import sys, tapeseal.cli.app, tapeseal.cli.{command}; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert {"tapeseal", "tapeseal._core"} <= loaded
    assert {"numpy", "tapeseal.tape", "tapeseal.reader"} & loaded == set()


def test_all_names_resolve() -> None:
    """Every public name is there, and dir() names it."""
    assert [name for name in tapeseal.__all__ if not hasattr(tapeseal, name)] == []
    assert set(tapeseal.__all__) - set(dir(tapeseal)) == set()
    with pytest.raises(AttributeError, match="no attribute 'keyrung'"):
        tapeseal.keyrung  # noqa: B018


def test_lazy_names_agree() -> None:
    """What loads on first use is public, and type checkers find it in the same modules."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typing = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in typing.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert tapeseal._LAZY == seen
    assert seen.keys() - set(tapeseal.__all__) == set()


def test_exports() -> None:
    """The extension exports its entry point and nothing of libcrypto."""
    if "libcrypto" in tool("objdump", "-p"):
        pytest.skip("this build links the system's libcrypto")
    symbols = {line.split()[-1] for line in tool("nm", "-D", "--defined-only").splitlines()}
    assert symbols == {"PyInit__core"}


def test_no_lazy_binding() -> None:
    """The extension's table of functions is read-only once it is loaded."""
    assert "GNU_RELRO" in tool("readelf", "--segments", "--wide")
    assert "BIND_NOW" in tool("readelf", "--dynamic", "--wide")


def test_openssl_version() -> None:
    """The libcrypto in use says which it is."""
    assert tapeseal.openssl_version().startswith("OpenSSL 3.")


def test_version() -> None:
    """The installed version is the one that pyproject.toml names."""
    pyproject = tomllib.loads(project("pyproject.toml").read_text())
    assert metadata.version("tapeseal") == pyproject["project"]["version"]


def test_typed() -> None:
    """Type checkers find the package typed, and the face of the extension."""
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_core.pyi").exists()


def test_workflow_copies_agree() -> None:
    """GitHub runs the same workflow that stands at the top."""
    copy = project(".github/workflows/wheels.yml")
    assert project("wheels.yml").read_bytes() == copy.read_bytes()


def test_repeated_requirements_agree() -> None:
    """What pyproject.toml has to say twice, it says alike."""
    pyproject = tomllib.loads(project("pyproject.toml").read_text())
    groups, extras = pyproject["dependency-groups"], pyproject["project"]["optional-dependencies"]
    assert groups["build"] == pyproject["build-system"]["requires"]
    assert groups["cli"] == extras["cli"]
