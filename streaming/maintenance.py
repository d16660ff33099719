"""What the commands `croupier replay | export | import | doctor` do, in one place.

    replay(data, progress) -> ReplayReport             .equal, .lines()
    export(data, file, progress) -> ExportReport       .lines()
    import_(file, data, shards, progress) -> ImportReport
    doctor(data, progress) -> DoctorReport             .ok, .lines()

`progress(what, done, total)` is called now and then. All raise `streaming.errors.StreamingError` with a sentence to
show; doctor reports instead.
"""

from streaming.archive import ArchiveError, ExportReport, ImportReport, export, import_
from streaming.doctor import DoctorReport, doctor
from streaming.folder import Progress, silent
from streaming.replay import ReplayReport, ShardReplay, replay

__all__ = [
    "ArchiveError",
    "DoctorReport",
    "ExportReport",
    "ImportReport",
    "Progress",
    "ReplayReport",
    "ShardReplay",
    "doctor",
    "export",
    "import_",
    "replay",
    "silent",
]
