"""Progress of long work, on stderr: one line redrawn on a terminal, a line every few seconds elsewhere."""

import sys
import time

EVERY_S = {True: 0.1, False: 5.0}


class Progress:
    """Call it with what is being done, how much is done, and how much there is."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.shown_at = time.monotonic()
        self.drawn = False

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown_at < EVERY_S[self.terminal]:
            return
        self.shown_at = now
        percent = f"{100 * done / total:3.0f} %" if total else ""
        line = f"{what}: {done:,} of {total:,} {percent}"
        print(
            f"\r\x1b[K{line}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )
        self.drawn = self.terminal

    def end(self) -> None:
        """Clears the line."""
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.drawn = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
