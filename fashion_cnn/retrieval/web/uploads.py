"""Pictures that come with a request: held in memory, no more than they may be, and never written to disk."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fashion_cnn.retrieval.web.errors import Busy, Refused
from fashion_cnn.retrieval.web.query import MOST_CHARACTERS, MOST_MARKS, MOST_PICTURES, MOST_VALUES

_FIELDS = 2 * (MOST_MARKS + MOST_PICTURES + MOST_VALUES)


@dataclass(frozen=True)
class Form:
    """fields: the texts of each name. files: the bytes of each name; one that a browser sent empty is left out."""

    fields: dict[str, list[str]]
    files: dict[str, list[bytes]]


class Uploads:
    """Reads multipart forms.

    most_bytes: of one request. in_memory: of all that are read or worked on at once, in bytes; beyond it is Busy.
    seconds: so long a client may take.
    """

    def __init__(self, *, most_bytes: int, in_memory: int, seconds: float) -> None:
        self.most_bytes = most_bytes
        self._free = in_memory
        self._seconds = seconds

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Form]:
        """The form of a request, whose memory counts until the block ends. Raises Refused."""
        taken = 0

        async def counted() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            async for chunk in request.stream():
                if taken + len(chunk) > self.most_bytes:
                    raise self._too_large()
                if len(chunk) > self._free:
                    raise Busy
                self._free -= len(chunk)
                taken += len(chunk)
                yield chunk

        try:
            yield await self._form(request, counted())
        finally:
            self._free += taken

    async def _form(self, request: Request, stream: AsyncGenerator[bytes, None]) -> Form:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "multipart/form-data":
            raise Refused(415, "Send pictures as a form does, as multipart/form-data.")
        claimed = request.headers.get("content-length", "")
        try:
            with anyio.fail_after(self._seconds):
                if claimed.isdecimal() and int(claimed) > self.most_bytes:
                    await self._read_away(request)
                    raise self._too_large()
                parser = MultiPartParser(request.headers, stream, max_files=2 * MOST_PICTURES, max_fields=_FIELDS)
                # Else it writes files of more than 1 MB to disk.
                parser.spool_max_size = self.most_bytes + 1
                parser.max_part_size = MOST_CHARACTERS + 1
                return await _sorted(parser)
        except TimeoutError:
            raise Refused(408, "The picture took too long to arrive: try again.") from None
        except MultiPartException as error:
            raise Refused(400, f"The form cannot be read: {error.message}") from error
        except (ValueError, LookupError) as error:  # of character sets and boundaries that are none
            raise Refused(400, "The form cannot be read.") from error
        except ClientDisconnect:
            raise Refused(400, "The form ended early.") from None

    async def _read_away(self, request: Request) -> None:
        """A browser shows an answer only after it has sent all that it wanted to; what comes is not kept."""
        if "expect" in request.headers:
            return
        left = 8 * self.most_bytes
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return

    def _too_large(self) -> Refused:
        return Refused(413, f"That is too large: {self.most_bytes / 1e6:g} MB are the most in one go.")


async def _sorted(parser: MultiPartParser) -> Form:
    form = Form({}, {})
    parsed = await parser.parse()
    for name, value in parsed.multi_items():
        if not isinstance(value, UploadFile):
            form.fields.setdefault(name, []).append(value)
        elif value.size or value.filename:
            form.files.setdefault(name, []).append(await value.read())
    await parsed.close()
    return form
