"""Annotations of arrays are what they seem: each has a shape in quotes, can be evaluated, and is checked."""

import ast
import builtins
import dis
import importlib
import inspect
import pathlib
import pkgutil
import typing

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import sparse_vis
from sparse_vis import types
from sparse_vis.data.decode import to_canvas
from sparse_vis.data.sources import Source
from sparse_vis.evals.classes.linear import logits, mean_average_precision
from sparse_vis.models.stellar import fold
from sparse_vis.train.health import spread
from sparse_vis.train.optimizer import update_teacher
from tests.conftest import CHECKED

NAMES = [module.name for module in pkgutil.walk_packages(sparse_vis.__path__, "sparse_vis.")]
ROOT = pathlib.Path(__file__).parent.parent
ARRAYS = {name for name, kind in vars(jaxtyping).items() if hasattr(kind, "dtypes")}
# The notebook API says itself what is wrong with images: its tests hand it all sorts of things.
UNCHECKED = {"sparse_vis.api"}
# Names that a module imports for type checkers only.
LATER = {"sparse_vis.data.loader": {"Batch": types.Batch}, "sparse_vis.build": {"Source": Source}}


def unquoted(code: str) -> list[str]:
    """Annotations such as Float[Array, N * k], whose shape is not a string."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] in ARRAYS:
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
            shape = parts[1].value if len(parts) == 2 and isinstance(parts[1], ast.Constant) else None
            if not isinstance(shape, str):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_shape_is_in_quotes():
    assert {"Float", "UInt8", "Shaped", "Int32", "Bool"} <= ARRAYS
    assert unquoted("def f(x: Int[Array, N * classes], y: Float[Array, 3], z: Float[Array, 'n']): ...") == [
        "1: Int[Array, N * classes]", "1: Float[Array, 3]",
    ]  # fmt: skip
    files = [
        p for place in ("sparse_vis", "benchmarks", "tests", "launch") for p in (ROOT / place).rglob("*.py")
    ]
    found = {str(path.relative_to(ROOT)): unquoted(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert len(found) > 200


def annotated(module):
    """Name and object of every function, method and class that a module defines."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        yield name, value
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if getattr(member, "__module__", None) == module.__name__:  # not a field's default
                yield f"{name}.{key}", member


def arrays(annotation) -> list:
    """The jaxtyping annotations in an annotation."""
    inner = [found for part in typing.get_args(annotation) for found in arrays(part)]
    return [annotation, *inner] if hasattr(annotation, "dim_str") else inner


@pytest.mark.fast
def test_every_annotation_can_be_evaluated_and_is_checked():
    failures, shapes, of = [], 0, set()
    for module in map(importlib.import_module, NAMES):
        for name, value in annotated(module):
            value = inspect.unwrap(value) if callable(value) and not inspect.isclass(value) else value
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            try:
                found = inspect.get_annotations(value, locals=LATER.get(module.__name__), eval_str=True)
            except Exception as error:
                failures.append(f"{module.__name__}.{name}: {error}")
                continue
            count = sum(len(arrays(annotation)) for annotation in found.values())
            shapes += count
            of |= {module.__name__} if count else set()
    assert failures == []
    assert shapes > 600  # as many as there are, about: none is lost by the way they are found
    hooked = {
        name
        for name in of
        if type(importlib.import_module(name).__spec__.loader).__name__ != "SourceFileLoader"
    }
    assert of - hooked == UNCHECKED  # conftest's CHECKED names the others
    assert all(any(f"{name}.".startswith(f"sparse_vis.{part}.") for part in CHECKED) for name in hooked)


@pytest.mark.fast
@pytest.mark.parametrize(
    "call",
    [
        lambda: fold(jnp.zeros(3)),
        lambda: logits({"weight": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}, jnp.zeros((3, 4, 1))),
        lambda: mean_average_precision(np.zeros((3, 2)), np.zeros((2, 3), bool)),
        lambda: to_canvas(np.zeros((4, 4, 4), np.uint8), 8, min_side=1),
        lambda: update_teacher({}, {}, jnp.zeros(2)),
        lambda: spread(jnp.zeros((2, 3))),
    ],
)
def test_a_wrong_shape_is_refused(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def global_names(code):
    """Names that a function, or one inside it, reads from its module."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return found.union(*(global_names(inside) for inside in code.co_consts if isinstance(inside, type(code))))


def test_no_function_reads_a_name_that_its_module_lacks():
    """What ruff's F821 would say, which is off, as shapes in annotations are undefined names to it."""
    missing = {}
    for module in map(importlib.import_module, NAMES):
        code = compile(pathlib.Path(module.__file__).read_text(), module.__file__, "exec")
        unknown = {n for n in global_names(code) if not hasattr(module, n) and not hasattr(builtins, n)}
        missing |= {module.__name__: unknown} if unknown else {}
    assert missing == {}
