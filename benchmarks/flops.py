"""Floating-point operations: by formula from the sizes, and of a traced program."""

from __future__ import annotations


def products(jaxpr, loops: bool = True) -> float:
    """FLOPs of all matrix products and convolutions, two per multiply-add, on any device.

    Args:
        jaxpr: of the traced function. loops: False counts the body of every scan once.

    Raises:
        ValueError: a product in a while loop, whose number of runs is not in the program.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [getattr(v.aval, "shape", ()) for v in equation.invars]
        size = sum(v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            for axis in contracted:
                size *= shapes[0][axis]
            total += 2 * size
        elif name == "conv_general_dilated":
            kernel = equation.params["dimension_numbers"].rhs_spec  # out, in, then the window
            for axis in kernel[1:]:
                size *= shapes[1][axis]
            total += 2 * size
        parts = [products(inner, loops) for inner in _inner(equation.params)]
        if name == "while" and any(parts) and loops:
            raise ValueError("a matrix product runs in a while loop, as often as only the run decides")
        times = equation.params["length"] if name == "scan" and loops else 1
        total += times * (max(parts, default=0.0) if name == "cond" else sum(parts))
    return total


def _inner(params: dict):
    """The programs within an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
