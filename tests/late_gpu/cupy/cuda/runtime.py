from typing import Any

from .._errors import CUDARuntimeError as CUDARuntimeError


def getDeviceCount() -> int:  # noqa: N802
    return 1


def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802
    return {"name": b"late GPU"}


def driverGetVersion() -> int:  # noqa: N802
    return 13000


def runtimeGetVersion() -> int:  # noqa: N802
    return 12090
