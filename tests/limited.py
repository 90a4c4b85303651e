"""A command under a time limit."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


def run(command: list[str], limit: float, environment: Mapping[str, str], cwd: Path | None = None) -> tuple[str, str]:
    """The exit status, or "timeout" past `limit` seconds, or "not started", and what was printed until then.

    Past the limit the command ends with all processes that it started.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    try:
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **environment}, start_new_session=True, **pipes)
    except OSError as error:
        return "not started", str(error)
    try:
        output, _ = process.communicate(timeout=limit)
        return str(process.returncode), output
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        return "timeout", process.communicate()[0]
