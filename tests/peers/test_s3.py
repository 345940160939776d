"""Training on s3://, served by moto, through a proxy that answers some requests with a fault."""

import os
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data import folders
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.prepare import prepare
from mlm_jax.data.sources import open_run_data
from mlm_jax.errors import RunError
from tests.run_small import (
    assert_same_end,
    config_of,
    documents,
    run_script_alone,
    start_script,
    tokenizer,
    wait_for_a_step,
    write_config,
)

pytestmark = pytest.mark.peers

URL = "s3://bucket/data"
FAULTS = ("truncated", "flipped", "unavailable", "closed", "slow", "none")


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to moto. The first request for a range of tokens is answered with the next fault."""

    protocol_version = "HTTP/1.1"
    upstream = 0
    faults: Iterator[str]
    last: str | None = None
    seen: set[tuple[str, str]]
    answered: Counter[str]

    def log_message(self, *_: object) -> None: ...

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content, status = response.read(), response.status
        connection.close()
        fault, length = self.fault(), len(content)
        if fault == "unavailable":
            content, status = b"<Error><Code>SlowDown</Code></Error>", 503
        elif fault == "truncated":
            content = content[: len(content) // 2]
        elif fault == "flipped":
            content = bytes([content[0] ^ 1]) + content[1:]
        elif fault == "slow":
            time.sleep(0.5)
        self.send_response(status)
        for name, value in response.getheaders():
            # Without the checksums of S3, which not every server sends.
            if not name.lower().startswith("x-amz-checksum") and name.lower() not in (
                "content-length",
                "transfer-encoding",
                "connection",
                "date",
                "server",
            ):
                self.send_header(name, value)
        # Of a HEAD, that of the file; of a connection that will be closed, more than is sent.
        whole = response.getheader("Content-Length") if self.command == "HEAD" else length
        self.send_header("Content-Length", str(whole if fault in ("none", "closed") else len(content)))
        self.end_headers()
        if fault == "closed":
            self.wfile.write(content[:10])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(content)

    def fault(self) -> str:
        """Returns the fault of this request."""
        byte_range = self.headers.get("Range")
        if byte_range is None or "/tokens-" not in self.path:
            return "none"
        server = type(self)
        if (self.path, byte_range) in server.seen and server.last is None:
            return "none"
        server.seen.add((self.path, byte_range))
        fault = server.last or next(server.faults)
        server.answered[fault] += 1
        return fault

    do_GET = do_PUT = do_HEAD = do_POST = pass_on  # noqa: N815


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, Proxy.upstream = moto.get_host_and_port()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_port}"
    proxy.shutdown()
    moto.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of some thirty pieces."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = " ".join(documents()).split()
    (folder / "text.txt").write_text("\n".join(" ".join(rng.choice(words, 200)) for _ in range(1000)))
    prepare([str(folder / "text.txt")], tokenizer(), folder / "data")
    return folder / "data"


@pytest.fixture
def bucket(endpoint: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket with the data."""
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        # Their own attempts would take minutes.
        "AWS_MAX_ATTEMPTS": "1",
        "MLM_JAX_HOME": str(tmp_path / "home"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(folders, "_RETRY_SECONDS", (0.0, 0.01, 0.01))
    Proxy.faults, Proxy.last = iter(lambda: "none", None), None
    Proxy.seen, Proxy.answered = set(), Counter()
    files = s3fs.S3FileSystem()
    if not files.exists("bucket"):
        files.mkdir("bucket")
        files.put(f"{data}/", "bucket/data/", recursive=True)


def batches(path: str) -> TrainingBatches:
    data = replace(config_of(Path("run")).data, path=path, order="windowed")
    return TrainingBatches(open_run_data(data).train, BatchSizes(8), seed=0)


@pytest.mark.usefixtures("bucket")
def test_rows_are_right_whatever_the_network_does(data: Path) -> None:
    Proxy.faults = cycle(FAULTS)
    found, expected = batches(URL), batches(str(data))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(30):
            np.testing.assert_array_equal(found.batch(step).token_ids, expected.batch(step).token_ids)
    assert set(Proxy.answered) == set(FAULTS)
    lines = {str(warning.message) for warning in said}
    for words in ("EOFError: ", "do not match their checksums; fetching them again"):
        assert any(
            line.startswith("s3://bucket/data/tokens-00000.bin: bytes ") and words in line for line in lines
        )


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("unavailable", r"download failed \(.*(SlowDown|503)"),
        ("closed", "download failed"),
        ("truncated", r"download failed \(EOFError: [\d,]+ bytes instead of [\d,]+\)"),
        ("flipped", "do not match their checksums, again"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*trying again", "ignore:.*fetching them again")
def test_a_lasting_fault_is_named(fault: str, error: str) -> None:
    Proxy.last = fault
    with pytest.raises(
        RunError, match=rf"^s3://bucket/data/tokens-00000\.bin: bytes [\d,]+ to [\d,]+:? .*{error}"
    ):
        batches(URL).batch(0)


@pytest.mark.usefixtures("bucket")
def test_a_run_on_s3_that_is_killed_and_resumed_equals_one_on_a_local_folder(
    data: Path, tmp_path: Path
) -> None:
    def config(name: str, path: str) -> Path:
        settings = config_of(tmp_path / name)
        return write_config(
            replace(settings, data=replace(settings.data, path=path, order="windowed")), f"{name}.json"
        )

    local, remote = config("local", str(data)), config("remote", URL)
    assert run_script_alone("train", local).returncode == 0
    Proxy.faults = cycle(FAULTS)
    child = start_script("train", remote)
    wait_for_a_step(child)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    resumed = run_script_alone("train", remote)
    assert resumed.returncode == 0, resumed.stderr
    assert Proxy.answered["truncated"]
    assert Proxy.answered["flipped"]
    assert_same_end(tmp_path / "remote", tmp_path / "local")
