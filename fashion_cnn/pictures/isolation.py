"""Prepare the pictures of strangers in a process of its own, whose processor time and memory are limited.

A few bytes can claim any amount of work. `decode` refuses the known ways; this process bounds all others, and keeps
them away from the threads that answer searches.
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
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from fashion_cnn.pictures.decoding import TOO_LONG, TooManyPixelsError, UnreadablePictureError, decode, silence_pillow
from fashion_cnn.pictures.preparation import THUMBNAIL_SIDE, Box, Preparation, encode_thumbnail

# Memory per pixel of the most expensive formats, and of anything else, in bytes.
_BYTES_PER_PIXEL, _OTHER_BYTES = 20, 128_000_000
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
        max_pixels: most pixels of a decoded picture.
        seconds: most processor time for the pictures of one call.
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
                    found = [Box(*sides) for sides in answer["items"]]
                    results.append(_Result(picture, connection.recv_bytes(), found))
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
        # The same modules as here; a session of its own, which a Ctrl-C in the terminal does not reach.
        program = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as it; it.run({theirs.fileno()})"
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
    # Ends this process, also in the middle of a decoder.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    memory = _used_memory()
    # Libraries in C print what is wrong with a file, which `decode` tells.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(EOFError, OSError), silence_pillow(), Connection(descriptor) as connection:
        while True:
            request = json.loads(connection.recv_bytes())
            boxes = [box and Box(*box) for box in request["boxes"]]
            contents = [connection.recv_bytes() for _ in boxes]
            max_pixels, preparation = request["max_pixels"], request["preparation"]
            prepare = Preparation(**preparation | {"image_shape": tuple(preparation["image_shape"])})
            _limit_memory(memory, 2 * sum(map(len, contents)) + max_pixels * _BYTES_PER_PIXEL + _OTHER_BYTES)
            seconds, output = request["seconds"], request["output"]
            least = THUMBNAIL_SIDE**2 if output == "product" else 0
            for content, box in zip(contents, boxes, strict=True):
                # Not while answers are sent: the other process is to take them for the end of the work.
                signal.setitimer(signal.ITIMER_PROF, max(seconds, 0.001))
                try:
                    min_pixels = max(prepare.min_pixels_for(box), least)
                    picture = decode(content, min_pixels=min_pixels, max_pixels=max_pixels)
                    pixels = b"" if output == "items" else prepare.array(picture, box).tobytes()
                    thumbnail = encode_thumbnail(picture) if output == "product" else b""
                    items = prepare.find_items(picture) if output == "items" else []
                except Exception as error:  # `decode` raises one kind; further ones are a lack of memory
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    reason = str(error) if isinstance(error, UnreadablePictureError) else "takes too much memory"
                    too_large = not isinstance(error, UnreadablePictureError) or isinstance(error, TooManyPixelsError)
                    connection.send_bytes(json.dumps({"error": reason, "too_large": too_large}).encode())
                    break
                seconds, _ = signal.setitimer(signal.ITIMER_PROF, 0)
                connection.send_bytes(json.dumps({"items": [astuple(item) for item in items]}).encode())
                connection.send_bytes(pixels)
                connection.send_bytes(thumbnail)


def _used_memory() -> int | None:
    """Return the size of this process's address space in bytes; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _limit_memory(used: int | None, further: int) -> None:
    if used is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        with suppress(OSError, ValueError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (used + further, hard))
