"""What audio models represent inside: the library behind the book."""

__version__ = "0.1.0"
