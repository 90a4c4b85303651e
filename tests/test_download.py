"""The download against a real server on this machine that misbehaves."""

import contextlib
import gzip
import hashlib
import io
import itertools
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minires import cifar, download

NAMES = [f"{cifar.FOLDER}/{name}" for name in cifar.TRAIN_FILES + cifar.TEST_FILES]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info, data


def archive(*extra: tuple) -> bytes:
    data = cifar.synthetic_records(20)
    file = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=file, mode="w", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for info, content in [*extra, *(member(name, data) for name in NAMES)]:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `body` with Range; each request first takes the next of `plans`, which says how to misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.plans, self.requests = b"", itertools.repeat({}), []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        plan, body = next(self.server.plans), self.server.body
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted and "ignore_range" not in plan else 0
        self.server.requests.append(begin)
        if "redirect" in plan:
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            return
        status = plan.get("status", 206 if begin else 200)
        body = plan.get("body", body) if status < 300 else b"sorry"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) - begin + plan.get("more", 0)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end = min(len(body), begin + plan.get("cut", len(body)))
        with contextlib.suppress(OSError):
            self.wfile.write(body[begin:end])
            self.wfile.flush()
            time.sleep(plan.get("stall", 0))
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    with Server() as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=[0.01])  # seconds until it sees that it shall end
        thread.start()
        monkeypatch.setenv("MINIRES_CIFAR10_URL", f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(download, "BACKOFF", 0.001)
        monkeypatch.setattr(download, "TIMEOUT", (2, 0.5))
        monkeypatch.setattr(cifar, "FILE_RECORDS", 20)
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def offer(server, monkeypatch):
    """Makes the server offer `body`, as if that were the official archive, misbehaving by `plans` at first."""

    def serve(body: bytes, *plans: dict, afterwards: dict | None = None) -> None:
        monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(body).hexdigest())
        monkeypatch.setattr(cifar, "ARCHIVE_BYTES", len(body))
        server.body, server.plans = body, itertools.chain(plans, itertools.repeat(afterwards or {}))

    return serve


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".cifar-10.lock")


COMPLETE = sorted([cifar.FOLDER, *NAMES])
BODY = archive()


@pytest.mark.parametrize(
    "plans",
    [
        [],
        [{"cut": 1}, {"cut": 0}, {"cut": 5000}],
        [{"status": 503}, {"status": 503}],
        [{"status": 429}],
        [{"cut": 3000}, {"ignore_range": True, "cut": 2000}, {"ignore_range": True}],
        [{"cut": 3000, "stall": 2}],
        [{"redirect": True}],
        [{"cut": 3000}, {"redirect": True}],
        [{"cut": 3000}, {"status": 206, "ignore_range": True, "cut": 0}],
    ],
    ids=str,
)
def test_a_server_that_recovers(offer, server, tmp_path, plans):
    offer(BODY, *plans)
    data = cifar.load(tmp_path)
    assert data.train.labels.tolist() == [*range(10)] * 10
    assert names_in(tmp_path) == COMPLETE


def test_cut_at_random_bytes(offer, server, tmp_path):
    rng = random.Random(0)
    offer(BODY, *({"cut": rng.randrange(len(BODY) // 8)} for _ in range(40)))
    cifar.load(tmp_path)
    assert names_in(tmp_path) == COMPLETE
    assert len(server.requests) > 5 and server.requests == sorted(server.requests)  # each goes on where one broke


@pytest.mark.parametrize(
    ("always", "words"),
    [
        ({"status": 404}, "the server answers 404"),
        ({"status": 500}, "the server answers 500, 4 times in a row"),
        ({"cut": 0}, "the connection broke, 4 times"),
        ({"stall": 1, "cut": 0}, "the server does not answer, 4 times"),
        ({"more": 7}, rf"the server offers {len(BODY) + 7} bytes instead of {len(BODY)}"),
        ({"body": BODY[:-9]}, rf"the server offers {len(BODY) - 9} bytes instead of {len(BODY)}"),
        ({"body": bytes(len(BODY))}, "has the SHA-256 .* it was deleted"),
    ],
    ids=str,
)
def test_a_server_that_does_not(offer, tmp_path, always, words):
    offer(BODY, afterwards=always)
    with pytest.raises(cifar.DataError, match=words):
        cifar.load(tmp_path)
    assert not (tmp_path / cifar.FOLDER).exists()
    offer(BODY)
    cifar.load(tmp_path)  # nothing that was left behind harms the next run
    assert names_in(tmp_path) == COMPLETE


def test_a_download_goes_on_in_the_next_run(offer, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    offer(BODY, {"cut": 4000}, afterwards={"cut": 0})
    with pytest.raises(cifar.DataError, match="the connection broke"):
        cifar.load(tmp_path)
    assert names_in(tmp_path) == [".cifar-10-binary.tar.gz.part"]
    offer(BODY)
    cifar.load(tmp_path)
    assert server.requests[-1] == 4000


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * (len(BODY) + 100), b"x" * len(BODY)], ids=len)
def test_a_part_of_something_else_does_no_lasting_harm(offer, tmp_path, left):
    offer(BODY)
    (tmp_path / ".cifar-10-binary.tar.gz.part").write_bytes(left)
    with pytest.raises(cifar.DataError, match="it was deleted"):
        cifar.load(tmp_path)
    cifar.load(tmp_path)
    assert names_in(tmp_path) == COMPLETE


def test_what_else_the_official_archive_holds_is_passed_over(offer, tmp_path):
    folder = member(cifar.FOLDER, kind=tarfile.DIRTYPE)
    offer(archive(folder, member(f"{cifar.FOLDER}/readme.html", b"x"), member(f"{cifar.FOLDER}/batches.meta.txt", b"x")))
    cifar.load(tmp_path)
    assert names_in(tmp_path) == COMPLETE


FETCH = """
import resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in the background would pass on as ignored
from pathlib import Path
from minires import cifar
cifar.ARCHIVE_BYTES, cifar.SHA256, cifar.FILE_RECORDS = int(sys.argv[2]), sys.argv[3], 20
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    cifar.fetch(Path(sys.argv[1]))
except cifar.DataError as error:
    sys.exit(f"error: {error}")
"""


def fetch_in_a_process(folder, *limit) -> subprocess.Popen:
    arguments = [str(folder), str(cifar.ARCHIVE_BYTES), cifar.SHA256, *limit]
    root = str(Path(cifar.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, *arguments], stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )


def test_three_processes_at_once(offer, server, tmp_path):
    offer(BODY, {"cut": 3000, "stall": 0.3})
    processes = [fetch_in_a_process(tmp_path) for _ in range(3)]
    assert [p.communicate()[1] for p in processes if p.wait()] == []
    assert names_in(tmp_path) == COMPLETE
    assert server.requests == [0, 3000]  # one of them fetched it


def test_disk_full(offer, tmp_path):
    """A limit on the size of files stands in for the disk's end: writing fails in the same way."""
    offer(BODY)
    process = fetch_in_a_process(tmp_path, "10000")
    assert f"cannot store CIFAR-10 in {tmp_path}" in process.communicate()[1]
    assert process.returncode == 1
    cifar.load(tmp_path)
    assert names_in(tmp_path) == COMPLETE


def test_a_folder_that_cannot_be_written(offer, tmp_path):
    offer(BODY)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(cifar.DataError, match="cannot store CIFAR-10 in .*file/data"):
        cifar.load(tmp_path / "file" / "data")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(cifar.DataError, match="cannot store CIFAR-10 in .*closed"):
            cifar.load(tmp_path / "closed")


@pytest.mark.parametrize("number", [2, 9], ids=["SIGINT", "SIGKILL"])
def test_interrupted(offer, server, tmp_path, number):
    offer(BODY, {"cut": 4000, "stall": 60})  # until the process is gone
    process = fetch_in_a_process(tmp_path)
    while not server.requests:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / cifar.FOLDER).exists()
    cifar.load(tmp_path)
    assert names_in(tmp_path) == COMPLETE


def test_verify(tmp_path, monkeypatch, offer):
    offer(BODY)
    cifar.load(tmp_path)
    monkeypatch.setattr(
        cifar, "FILE_SHA256", dict.fromkeys(cifar.FILE_SHA256, hashlib.sha256(cifar.synthetic_records(20)).hexdigest())
    )
    cifar.load(tmp_path, verify=True)
    path = tmp_path / cifar.FOLDER / "data_batch_4.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    cifar.load(tmp_path)
    with pytest.raises(cifar.DataError, match="data_batch_4.bin has the SHA-256 .* delete it to fetch it again"):
        cifar.load(tmp_path, verify=True)


def test_verify_the_real_files(cifar_dir):
    cifar.load(cifar_dir, download=False, verify=True)
