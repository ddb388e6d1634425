"""Decode untrusted pictures in a separate process, whose processor time and memory are limited.

A small file can ask for any amount of work. `decode` refuses the known kinds of such files. The limits of this process
stop all others, and none of them delays the threads that answer searches.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from fashion_cnn.pictures.decoding import TOO_LONG, TooManyPixelsError, UnreadablePictureError, decode, silence_pillow
from fashion_cnn.pictures.preparation import THUMBNAIL_SIDE, Box, Preparation, encode_thumbnail

# Memory per pixel of the formats that take the most, in bytes.
_BYTES_PER_PIXEL = 20
# Memory of everything else, in bytes.
_OTHER_BYTES = 128_000_000
# A picture file is converted to the prepared picture, to the same with a thumbnail, or to its items alone.
_Output = Literal["picture", "product", "items"]


class _Result(NamedTuple):
    """A prepared picture `(C, H, W)`, its encoded thumbnail and its items, each empty unless the output has it."""

    picture: NDArray[np.uint8]
    thumbnail: bytes
    items: list[Box]


class PictureProcess:
    """Decodes and prepares pictures in another process, which is started when it is needed and replaced when it ends.

    Attributes:
        max_pixels: maximum number of pixels of a decoded picture.
        seconds: maximum processor time for the pictures of one call.
    """

    def __init__(self, *, max_pixels: int, seconds: float) -> None:
        self.max_pixels = max_pixels
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._end: weakref.finalize[..., PictureProcess] | None = None

    def prepare(
        self, contents: Sequence[bytes], preparation: Preparation, boxes: Sequence[Box | None] | None = None
    ) -> list[NDArray[np.uint8] | UnreadablePictureError]:
        """Decode picture files and prepare them for the network.

        Calls from several threads wait for each other.

        Args:
            contents: the files.
            preparation: the conversion of pictures.
            boxes: the part of each picture that counts, None for the whole; without it all are whole.

        Returns:
            Pictures `(C, H, W)`; the first that cannot be read is an error and the last element.
        """
        results = self._exchange(contents, preparation, boxes or [None] * len(contents), "picture")
        return [result if isinstance(result, UnreadablePictureError) else result.picture for result in results]

    def prepare_product(self, content: bytes, preparation: Preparation) -> tuple[NDArray[np.uint8], bytes]:
        """Decode the picture file of a product, prepare it for the network, and make a thumbnail.

        Returns:
            The picture `(C, H, W)` and the encoded thumbnail.

        Raises:
            UnreadablePictureError: if it cannot be read.
        """
        (result,) = self._exchange([content], preparation, [None], "product")
        if isinstance(result, UnreadablePictureError):
            raise result
        return result.picture, result.thumbnail

    def find_items(self, content: bytes, preparation: Preparation) -> list[Box]:
        """Decode a picture file and return `Preparation.find_items`.

        Raises:
            UnreadablePictureError: if it cannot be read.
        """
        (result,) = self._exchange([content], preparation, [None], "items")
        if isinstance(result, UnreadablePictureError):
            raise result
        return result.items

    def _exchange(
        self,
        contents: Sequence[bytes],
        preparation: Preparation,
        boxes: Sequence[Box | None],
        output: _Output,
    ) -> list[_Result | UnreadablePictureError]:
        results: list[_Result | UnreadablePictureError] = []
        with self._lock:
            connection = self._started()
            try:
                request = {"max_pixels": self.max_pixels, "seconds": self.seconds, "preparation": asdict(preparation)}
                request |= {"boxes": [box and astuple(box) for box in boxes], "output": output}
                connection.send_bytes(json.dumps(request).encode())
                for content in contents:
                    connection.send_bytes(content)
                while len(results) < len(contents):
                    answer = json.loads(connection.recv_bytes())
                    if "error" in answer:
                        kind = TooManyPixelsError if answer["too_large"] else UnreadablePictureError
                        results.append(kind(answer["error"]))
                        break
                    pixels = np.frombuffer(bytearray(connection.recv_bytes()), np.uint8)
                    picture = pixels.reshape((0,) if output == "items" else preparation.image_shape)
                    items = [Box(*sides) for sides in answer["items"]]
                    results.append(_Result(picture, connection.recv_bytes(), items))
            except (OSError, EOFError):  # the process ended
                results.append(UnreadablePictureError(self._reason_of_end()))
        return results

    def close(self) -> None:
        """End the process."""
        if self._end:
            self._end()

    def _started(self) -> Connection:
        """Return the connection to the process, which is started unless it runs."""
        if self._process and self._connection and self._process.poll() is None:
            return self._connection
        self.close()
        self._connection, theirs = Pipe()
        # The process imports the same modules, and has its own session, which a Ctrl-C in the terminal does not reach.
        program = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as module; module.run({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        return self._connection

    def _reason_of_end(self) -> str:
        assert self._process
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        status = self._process.returncode
        self.close()
        if status == -signal.SIGPROF:
            return TOO_LONG
        return f"cannot be decoded (the decoder ended with status {status}): save it as an ordinary JPEG or PNG file"


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()


def run(descriptor: int) -> None:
    """Answer the requests of a `PictureProcess` until it closes the connection.

    Args:
        descriptor: file descriptor of this end of the connection.
    """
    # The decoder for AVIF would start a thread for each core, with memory of its own.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.init()
    # By default the signal of the timer ends this process, even inside a decoder in C.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    memory = _used_memory()
    # Libraries in C print what is wrong with a file; `decode` reports it as an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(EOFError, OSError), silence_pillow(), Connection(descriptor) as connection:
        while True:
            request = json.loads(connection.recv_bytes())
            contents = [connection.recv_bytes() for _ in request["boxes"]]
            further = 2 * sum(map(len, contents)) + request["max_pixels"] * _BYTES_PER_PIXEL + _OTHER_BYTES
            _limit_memory(memory, further)
            _answer(connection, request, contents)


def _answer(connection: Connection, request: dict[str, Any], contents: Sequence[bytes]) -> None:
    """Convert the picture files of a request and send each result, up to the first error.

    Args:
        connection: connection to the `PictureProcess`.
        request: the request, as `PictureProcess` sends it.
        contents: the files.
    """
    stored = request["preparation"]
    preparation = Preparation(**stored | {"image_shape": tuple(stored["image_shape"])})
    seconds, output = request["seconds"], request["output"]
    for content, box in zip(contents, (sides and Box(*sides) for sides in request["boxes"]), strict=True):
        # The timer only runs while a file is decoded: if it ends this process, the last file is the one that was slow.
        signal.setitimer(signal.ITIMER_PROF, max(seconds, 0.001))
        try:
            min_pixels = max(preparation.min_pixels_for(box), THUMBNAIL_SIDE**2 if output == "product" else 0)
            picture = decode(content, min_pixels=min_pixels, max_pixels=request["max_pixels"])
            pixels = b"" if output == "items" else preparation.array(picture, box).tobytes()
            thumbnail = encode_thumbnail(picture) if output == "product" else b""
            items = preparation.find_items(picture) if output == "items" else []
        except Exception as error:  # `decode` raises UnreadablePictureError; other errors are a lack of memory
            signal.setitimer(signal.ITIMER_PROF, 0)
            reason = str(error) if isinstance(error, UnreadablePictureError) else "takes too much memory"
            too_large = not isinstance(error, UnreadablePictureError) or isinstance(error, TooManyPixelsError)
            connection.send_bytes(json.dumps({"error": reason, "too_large": too_large}).encode())
            return
        seconds, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(json.dumps({"items": [astuple(item) for item in items]}).encode())
        connection.send_bytes(pixels)
        connection.send_bytes(thumbnail)


def _used_memory() -> int | None:
    """Return the size of this process's address space in bytes; None where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _limit_memory(used: int | None, further: int) -> None:
    if used is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        with suppress(OSError, ValueError):  # the system may have set a lower limit
            resource.setrlimit(resource.RLIMIT_AS, (used + further, hard))
