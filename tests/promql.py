"""What a test asks of a PromQL expression: which metrics it names, and what it compares."""

from collections.abc import Iterator
from typing import Any

import promql_parser

COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
SETS = {"and", "or", "unless"}


def names(expr: str) -> set[str]:
    """The metrics that an expression names.

    >>> sorted(names("sum by (le) (rate(a_bucket[5m])) / b > 0 unless c offset 1h"))
    ['a_bucket', 'b', 'c']
    """
    nodes = _nodes(promql_parser.parse(expr))
    return {node.name for node in nodes if isinstance(node, promql_parser.VectorSelector) and node.name}


def operands(expr: str) -> list[str]:
    """The sides of an alert's comparisons: these have values while all is well, the comparison has none.

    >>> operands("(sum(a) / sum(b) > 0.1) and c unless d == 0")
    ['sum(a) / sum(b)', 'c', 'd']
    >>> operands("a < 0.3 * (a offset 1h > 0.3)")
    ['a', '0.3 * (a offset 1h > 0.3)']
    """
    return [" ".join(side.prettify().split()) for side in _sides(promql_parser.parse(expr))]


def _sides(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.ParenExpr):
        yield from _sides(node.expr)
    elif isinstance(node, promql_parser.BinaryExpr) and str(node.op) in COMPARISONS | SETS:
        yield from _sides(node.lhs)
        yield from _sides(node.rhs)
    elif not isinstance(node, promql_parser.NumberLiteral):
        yield node


def _nodes(node: Any) -> Iterator[Any]:
    """A node and all below it."""
    yield node
    for field in ("lhs", "rhs", "expr", "param", "vector_selector"):
        below = getattr(node, field, None)
        if below is not None:
            yield from _nodes(below)
    for argument in getattr(node, "args", ()) or ():
        yield from _nodes(argument)
