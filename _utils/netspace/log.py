"""Log lines of the library, written by Python's ``logging``.

``logging`` is imported with the first line: that takes 5 ms, and most runs log nothing.
"""

from __future__ import annotations


class Log:
    """The logger of one module.

    :param name: the module's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self, message: str, *arguments: object) -> None:
        """Log *message*, which is formatted with the arguments by ``%``, as information."""
        self._log("info", message, arguments)

    def warning(self, message: str, *arguments: object) -> None:
        """Log *message*, which is formatted with the arguments by ``%``, as a warning."""
        self._log("warning", message, arguments)

    def _log(self, level: str, message: str, arguments: tuple[object, ...]) -> None:
        import logging

        # The caller of `info` or `warning` is the line's origin, not this module.
        getattr(logging.getLogger(self._name), level)(message, *arguments, stacklevel=3)
