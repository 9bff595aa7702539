"""Ask the compiler for vectors as wide as the processor has.

LLVM prefers 256 bits on processors that have 512, since some of them slow down for it. The
tracers read memory with gathers and gain a sixth from the full width (measured on Sapphire
Rapids). Where a processor has no such vectors, nothing changes.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def widest_vectors(typing_context: Any) -> Any:
    """Call it in a compiled function: marks that function (and nothing else) for wide vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows no name for these two and would refuse them; LLVM itself takes any
        # quoted attribute, so they are put into the set directly.
        for attribute in ("prefer-vector-width", "min-legal-vector-width"):
            set.add(builder.function.attributes, f'"{attribute}"="512"')
        return context.get_dummy_value()

    return types.void(), generate
