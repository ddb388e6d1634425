"""Picture files of any kind, converted to the tensors that a network takes."""

from fashion_cnn.pictures.decoding import (
    FORMATS,
    MAX_PIXELS,
    TooManyPixelsError,
    UnreadablePictureError,
    decode,
    open_picture,
)
from fashion_cnn.pictures.files import PictureFiles, find_pictures, read_pictures
from fashion_cnn.pictures.preparation import (
    PREPARATION_VERSION,
    THUMBNAIL_SIDE,
    Box,
    Preparation,
    encode_thumbnail,
    parse_box,
)

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "PREPARATION_VERSION",
    "THUMBNAIL_SIDE",
    "Box",
    "PictureFiles",
    "Preparation",
    "TooManyPixelsError",
    "UnreadablePictureError",
    "decode",
    "encode_thumbnail",
    "find_pictures",
    "open_picture",
    "parse_box",
    "read_pictures",
]
