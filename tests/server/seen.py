"""What a worker sees of a run folder: `python -m tests.server.seen MEMORY DISK` is one that has only just come."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from server.shared import HostFile, RunFolder
from server.view_diag import DiagView
from server.views import Views


def seen(views: Views) -> dict[str, Any]:
    """Every array of every policy, hashed, and a slate that the kernel makes of them."""
    found = {}
    for name, view in sorted(views.by_name.items()):
        digest = hashlib.blake2b(b"".join(view.arrays[each].tobytes() for each in sorted(view.arrays)))
        found[name] = [view.entry.version, digest.hexdigest()]
        if isinstance(view, DiagView):
            slate = view.serving.choose(np.arange(4, dtype=np.uint32), np.full(4, 16000, np.uint16), 10, 7)
            items = slate.items.tolist()
            found[name] += [items, slate.scores.tolist(), [view.ids[i] for i in items]]
    return found


if __name__ == "__main__":
    folder = RunFolder(Path(sys.argv[1]), Path(sys.argv[2]))
    host = HostFile(folder.host)
    views = Views(host, host.row(1), folder)
    views.refresh()
    print(json.dumps(seen(views)))
