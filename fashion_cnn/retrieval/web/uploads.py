"""Multipart forms with picture files, and JSON: read into memory within limits, never written to disk."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fashion_cnn.retrieval.web.errors import BusyError, HTTPError
from fashion_cnn.retrieval.web.query import MAX_MARKS, MAX_PICTURE_LENGTH, MAX_PICTURES, MAX_VALUES

# The parser would write a line to the log for each damaged form, which anyone can send.
logging.getLogger("python_multipart").setLevel(logging.ERROR)
_MAX_FIELDS = 2 * (MAX_MARKS + MAX_PICTURES + MAX_VALUES)
# Character sets of forms. Browsers name none; decoding some of Python's others, such as punycode, blocks the server.
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")


@dataclass
class Form:
    """A parsed form.

    Attributes:
        fields: the texts of each field.
        files: the contents of each field's files, without the empty file that a browser sends if none is chosen.
    """

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def only_picture(self) -> bytes:
        """Return the file of a form that holds nothing but one picture.

        Raises:
            HTTPError: if it holds anything else.
        """
        for name in (*self.fields, *self.files):
            if name != "picture":
                raise HTTPError(422, f"Unknown parameter {name}: send one picture file as picture.")
        pictures = self.files.get("picture", [])
        if self.fields or len(pictures) != 1:
            raise HTTPError(422, f"Send one picture file as picture; {len(pictures)} were sent.")
        return pictures[0]


class _Parser(MultiPartParser):
    """A parser that refuses a form without its last boundary, which differs from the others, and one without parts."""

    _has_ended = False

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int) -> None:
        async def complete() -> AsyncGenerator[bytes, None]:
            async for chunk in stream:
                yield chunk
            # Raised inside of `parse`, which then closes the files.
            if not (self._has_ended and self.items):
                raise MultiPartException("it is empty or ended early.")

        super().__init__(headers, complete(), **limits)

    def on_end(self) -> None:
        self._has_ended = True


class Uploads:
    """Reads multipart forms.

    Args:
        max_bytes: maximum size of a request.
        memory: maximum size in bytes of all requests that are read or searched at once; further ones get a `BusyError`.
        timeout: maximum time in seconds to read a request.
    """

    def __init__(self, *, max_bytes: int, memory: int, timeout: float) -> None:
        self._max_bytes = max_bytes
        self._free_memory = memory
        self._timeout = timeout

    @asynccontextmanager
    async def read(self, request: Request, *, searches: int = 1) -> AsyncIterator[Form]:
        """Read the form of a request, whose memory counts as used until the block ends.

        Args:
            request: the request.
            searches: maximum number of searches that the form describes.

        Raises:
            HTTPError: if the form is damaged, too large or too slow, or the server too busy.
        """
        async with self._received(request) as stream:
            yield await self._form(request, stream, searches)

    @asynccontextmanager
    async def read_json(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """Read the JSON object of a request, as `read` does a form.

        Raises:
            HTTPError: if it is no JSON object, too large or too slow, or the server too busy.
        """
        async with self._received(request) as stream:
            try:
                with anyio.fail_after(self._timeout):
                    value = json.loads(b"".join([chunk async for chunk in stream]))
            except TimeoutError:
                raise _timeout() from None
            except ClientDisconnect:
                raise HTTPError(400, "The request ended early.") from None
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise HTTPError(400, 'Send a JSON object, such as {"price": 19.9}.')
            yield value

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """Yield the chunks of a request, whose memory counts as used until the block ends."""
        received = 0

        async def stream() -> AsyncGenerator[bytes, None]:
            nonlocal received
            async for chunk in request.stream():
                if received + len(chunk) > self._max_bytes:
                    raise self._too_large()
                if len(chunk) > self._free_memory:
                    raise BusyError
                self._free_memory -= len(chunk)
                received += len(chunk)
                yield chunk

        try:
            yield stream()
        finally:
            self._free_memory += received

    async def _form(self, request: Request, stream: AsyncGenerator[bytes, None], searches: int) -> Form:
        media_type = request.headers.get("content-type", "")
        if media_type.partition(";")[0].strip().lower() != "multipart/form-data":
            raise HTTPError(415, "Send pictures as an HTML form does, as multipart/form-data.")
        length = request.headers.get("content-length", "")
        try:
            with anyio.fail_after(self._timeout):
                if length.isdecimal() and int(length) > self._max_bytes:
                    await self._discard_body(request)
                    raise self._too_large()
                if parse_options_header(media_type)[1].get(b"charset", b"utf-8").lower() not in _CHARSETS:
                    raise HTTPError(415, "Send the form in UTF-8.")
                parser = _Parser(request.headers, stream, max_files=2 * MAX_PICTURES * searches, max_fields=_MAX_FIELDS)
                # By default the parser writes files of more than 1 MB to disk.
                parser.spool_max_size = self._max_bytes + 1
                parser.max_part_size = MAX_PICTURE_LENGTH * searches + 1
                return await _parse(parser)
        except TimeoutError:
            raise _timeout() from None
        except MultiPartException as error:
            raise HTTPError(400, f"The form cannot be read: {error.message}") from error
        except (ValueError, LookupError) as error:  # such as an invalid boundary
            raise HTTPError(400, "The form cannot be read.") from error
        except ClientDisconnect:
            raise HTTPError(400, "The form ended early.") from None

    async def _discard_body(self, request: Request) -> None:
        """Read the body without keeping it: a browser shows a response only after it has sent the whole request."""
        if "expect" in request.headers:
            return
        remaining = 8 * self._max_bytes
        async for chunk in request.stream():
            remaining -= len(chunk)
            if remaining < 0:
                return

    def _too_large(self) -> HTTPError:
        return HTTPError(413, f"The upload is too large: the maximum is {self._max_bytes / 1e6:g} MB.")


def _timeout() -> HTTPError:
    return HTTPError(408, "The upload took too long: try again.")


async def _parse(parser: MultiPartParser) -> Form:
    form = Form()
    parsed = await parser.parse()
    for name, value in parsed.multi_items():
        if not isinstance(value, UploadFile):
            form.fields.setdefault(name, []).append(value)
        elif value.size or value.filename:
            form.files.setdefault(name, []).append(await value.read())
            # Each at once: its bytes would be in memory twice.
            await value.close()
    await parsed.close()
    return form
