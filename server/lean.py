"""Starting without what is not needed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SCIPY = ("scipy", "scipy.linalg")


@contextmanager
def without_scipy() -> Iterator[None]:
    """Nothing imports scipy's linear algebra meanwhile, or scipy at all; what is there already stays.

    For the import of numba and the first kernel of a process: numba then looks for scipy's BLAS. No kernel of ours has
    a use for it, and importing it takes as long as loading all of them.
    """
    absent = [name for name in _SCIPY if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
