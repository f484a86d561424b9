"""The nouns, a file each. Importing this package registers every handler that is built."""

from millstream.resources import image, image_builder, tag

__all__ = ["image", "image_builder", "tag"]
