"""Pictures as people have them, brought to what a network expects."""

from fashion_cnn.pictures.decoding import FORMATS, MAX_PIXELS, TooManyPixelsError, UnreadablePictureError, decode
from fashion_cnn.pictures.files import FoundPictures, find_pictures, read_pictures
from fashion_cnn.pictures.preparation import PREPARED_AS, Preparation

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "PREPARED_AS",
    "FoundPictures",
    "Preparation",
    "TooManyPixelsError",
    "UnreadablePictureError",
    "decode",
    "find_pictures",
    "read_pictures",
]
