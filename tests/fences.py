"""Arrays that end where memory ends: whoever reads or writes beyond one dies of it. For runs in a process of their own.

page without rights | canary bytes | the array | page without rights        (ends="back"; "front": the other way)
"""

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
CANARY = 0xA7
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Fences:
    """Stands in for numpy in a module that makes arrays for kernels: `empty`, `zeros`, `array`, `frombuffer`."""

    def __init__(self, ends: str) -> None:
        assert ends in ("back", "front")
        self._at_back = ends == "back"
        self._slack: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: int | Sequence[int], dtype: Any = float) -> Any:
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        room = max(-(-n_bytes // PAGE), 1) * PAGE
        pages = mmap.mmap(-1, room + 2 * PAGE)
        whole = np.frombuffer(pages, np.uint8)
        whole[:] = CANARY
        for page in (whole[:PAGE], whole[-PAGE:]):
            if _libc.mprotect(page.ctypes.data, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        inner = whole[PAGE:-PAGE]
        self._slack.append(inner[: room - n_bytes] if self._at_back else inner[n_bytes:])
        array = inner[room - n_bytes :] if self._at_back else inner[:n_bytes]
        return array.view(dtype).reshape(shape)

    def zeros(self, shape: int | Sequence[int], dtype: Any = float) -> Any:
        made = self.empty(shape, dtype)
        made[...] = 0
        return made

    def array(self, value: Any, dtype: Any = None) -> Any:
        plain = np.array(value, dtype)
        made = self.empty(plain.shape, plain.dtype)
        made[...] = plain
        return made

    def frombuffer(self, data: Any, dtype: Any = float) -> Any:
        plain = np.frombuffer(data, dtype)
        return self.array(plain) if isinstance(data, bytes) else plain

    def buffer(self, size: int) -> memoryview:
        """In place of a bytearray."""
        return memoryview(self.zeros(size, np.uint8))

    def check(self) -> None:
        """Nothing was written beside an array."""
        assert all((slack == CANARY).all() for slack in self._slack)

    def forget(self) -> None:
        """Checks, and lets go of arrays that nobody has any more: a process may have some 20,000."""
        self.check()
        self._slack.clear()
