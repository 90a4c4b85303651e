"""Errors of kernels, which the host hears of when it next waits."""

pending: list[str] = []


class CUDARuntimeError(RuntimeError):
    pass


def raise_pending() -> None:
    if pending:
        raise CUDARuntimeError(pending.pop(0))
