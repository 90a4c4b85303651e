"""Fetching one large file over HTTP so that no interruption harms it."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from pathlib import Path
from typing import Any

ATTEMPTS = 4  # in a row that bring nothing new, before giving up
BACKOFF = 1.0  # seconds before the next attempt; twice as long after each that brought nothing
TIMEOUT = (10, 30)  # seconds to connect, and without a byte


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not the one that was expected."""


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Bring the file of `size` bytes at `url` to `path`, going on where a part of it is there already.

    A connection that breaks or stalls, or an answer of 429 or 5xx, is tried again after a while, with an HTTP Range
    for what is missing. Raises DownloadError, in a sentence, where that brings nothing, the server refuses, or the
    bytes are others than expected: those are deleted. What is good so far stays. OSError where it cannot be stored.
    """
    from tqdm.auto import tqdm

    failures, best = 0, _length(path)
    with tqdm(total=size, initial=best, unit="B", unit_scale=True, desc=path.name, leave=False, disable=not wants_bar()) as bar:
        while _length(path) < size and (reason := _attempt(url, path, size, bar)):
            failures = 0 if _length(path) > best else failures + 1
            best = max(best, _length(path))
            if failures >= ATTEMPTS:
                raise DownloadError(f"cannot fetch {url}: {reason}, {failures} times in a row")
            wait = BACKOFF * 2 ** max(failures - 1, 0)
            bar.write(f"{url}: {reason}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        length = _length(path)
        path.unlink()
        raise DownloadError(f"what {url} sent, {length} bytes, has the SHA-256 {digest} instead of {sha256}: it was deleted")


def wants_bar() -> bool:
    """Whether a progress bar has somebody to look at it: a terminal, or a notebook; in a file each refresh is a line."""
    from tqdm.auto import tqdm

    return sys.stderr.isatty() or "tqdm_notebook" in [base.__name__ for base in tqdm.__mro__]


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, path: Path, size: int, bar: Any) -> str | None:
    """One request for what is missing; a reason to try again, or None where all of it came."""
    import requests
    import urllib3

    have = _length(path)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code == 416:  # what is here is longer than what is there
                path.unlink()
                return "the server has less than was fetched before"
            if response.status_code == 429 or response.status_code >= 500:
                return f"the server answers {response.status_code}"
            if response.status_code not in (200, 206):
                raise DownloadError(f"cannot fetch {url}: the server answers {response.status_code} {response.reason}")
            begin, total = _extent(response)
            if total not in (None, size):
                raise DownloadError(f"cannot fetch {url}: the server offers {total} bytes instead of {size}")
            if begin > have:
                return f"the server sends from byte {begin} on where {have} was asked for"
            with path.open("r+b" if have else "wb") as file:
                file.truncate(begin)
                file.seek(begin)
                bar.update(begin - bar.n)
                for chunk in response.raw.stream(1 << 16, decode_content=False):
                    if file.tell() + len(chunk) > size:
                        raise DownloadError(f"cannot fetch {url}: the server sends more than {size} bytes")
                    file.write(chunk)
                    bar.update(len(chunk))
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        return _reason(error)
    except requests.RequestException as error:
        raise DownloadError(f"cannot fetch {url}: {error}") from None
    return None if _length(path) == size else f"the server sent {_length(path)} bytes of {size}"


def _extent(response: Any) -> tuple[int, int | None]:
    """The first byte that the answer holds, and the size of the whole file where it says so."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (1 << 62, None)


def _reason(error: Exception) -> str:
    text = repr(error)
    if "Timeout" in text or "timed out" in text:
        return "the server does not answer"
    return "the connection broke" if "Incomplete" in text or "Protocol" in text else "no connection"
