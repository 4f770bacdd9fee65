"""Request bodies, written before the replay starts."""

import mmap
import tempfile
from array import array
from collections.abc import Iterable


class Spool:
    """Byte strings in an unnamed temporary file, mapped into memory.

    A prompt of 100,000 tokens takes milliseconds to encode as JSON and half a megabyte to keep.
    Encoded when it is due, it would delay other requests; kept on the heap, an hour of traffic
    would not fit.
    """

    def __init__(self, bodies: Iterable[bytes]) -> None:
        """Write all of `bodies`."""
        self._ends = array("Q", [0])
        with tempfile.TemporaryFile(prefix="kairos-replay-") as file:
            for body in bodies:
                file.write(body)
                self._ends.append(self._ends[-1] + len(body))
            file.flush()
            size = self._ends[-1]
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        self._view = memoryview(self._map)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> memoryview:
        return self._view[self._ends[index] : self._ends[index + 1]]
