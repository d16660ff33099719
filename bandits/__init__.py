"""Bandit policies as arrays and kernels: no I/O, no clock, no global randomness. Useful alone, in a notebook.

Importing this package says where numba keeps compiled kernels. By itself it would look at a kernel's own source file
only, and go on using machine code made from the former version of a kernel that it calls. So the folder is named after
the contents of all files that hold kernels: change one, and all are compiled again.
"""

import hashlib
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def kernel_folder(base: Path, root: Path) -> Path:
    """base/kernels-STAMP, where STAMP tells one state of the packages' kernels from another.

    >>> kernel_folder(Path("cache"), Path("nowhere")).name
    'kernels-e4a6a0577479b2b4'
    """
    stamp = hashlib.blake2b(digest_size=8)
    for package in ("bandits", "streaming", "server"):
        for path in sorted((root / package).glob("*.py")):
            text = path.read_bytes()
            if b"njit" in text:
                stamp.update(text)
    return base / f"kernels-{stamp.hexdigest()}"


def _use_kernel_folder() -> None:
    asked = Path(os.environ.get("NUMBA_CACHE_DIR") or _ROOT / "bandits" / "__pycache__")
    if asked.name.startswith("kernels-"):  # inherited from a process of ours
        asked = asked.parent
    folder = str(kernel_folder(asked, _ROOT))
    os.environ["NUMBA_CACHE_DIR"] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


_use_kernel_folder()
