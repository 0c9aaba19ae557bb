"""The root of the tree: a sentence with named gaps."""

from __future__ import annotations

from typing import Any, ClassVar


class NasBackupError(Exception):
    """Root of every error that this project raises on purpose."""

    template: ClassVar[str] = "{problem}"
    retryable: ClassVar[bool] = False

    def __init__(self, **data: Any) -> None:
        self.data = data
        super().__init__(self.template.format(**data))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.data)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


def _rebuild(cls: type[NasBackupError], data: dict[str, Any]) -> NasBackupError:
    return cls(**data)
