"""The audit of dependencies finds what it should, and says so where it could not ask."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import audit
import pytest

LISTED = {"numpy": "2.4.6", "pillow": "13.0.0", "torch": "2.13.0"}
KNOWN = {("pillow", "13.0.0"): ["GHSA-aaaa", "PYSEC-1"]}


class Service(BaseHTTPRequestHandler):
    """Answers as OSV does; `broken` makes it answer something else."""

    broken = None

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        results = []
        for query in queries:
            assert query["package"]["ecosystem"] == "PyPI"
            ids = KNOWN.get((query["package"]["name"], query["version"]), [])
            results.append({"vulns": [{"id": i, "modified": ""} for i in ids]} if ids else {})
        answer = json.dumps({"results": results}) if self.broken is None else self.broken
        self.send_response(500 if self.broken == "fails" else 200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch) -> Iterator[str]:
    """The address of a service on this machine."""
    monkeypatch.setattr(Service, "broken", None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/querybatch"
    server.shutdown()
    thread.join()
    server.server_close()


def test_known_vulnerabilities_are_found(service):
    assert audit.vulnerabilities(LISTED, service) == {"pillow": ["GHSA-aaaa", "PYSEC-1"]}


@pytest.mark.parametrize(
    "broken", ["fails", "<html>", "{}", '{"results": []}', '{"results": [1, 2, 3]}', "[]"]
)
def test_another_answer_is_no_clean_bill(service, monkeypatch, broken):
    monkeypatch.setattr(Service, "broken", broken)
    assert audit.vulnerabilities(LISTED, service) is None


def test_no_service_ends_soon(monkeypatch):
    monkeypatch.setattr(audit, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.perf_counter()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert audit.vulnerabilities(LISTED, address) is None
    assert audit.vulnerabilities(LISTED, address) is None  # nobody listens now
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (LISTED, []),
        (LISTED | {"pip": "25.0", "nvidia-cublas": "13.0"}, []),
        (LISTED | {"numpy": "2.4.60"}, ["numpy 2.4.60 is installed where 2.4.6 is listed"]),
        (LISTED | {"numpy": "2.4.6.0"}, []),
        (LISTED | {"left-pad": "1.0"}, ["left-pad 1.0 is installed but not listed"]),
        ({"numpy": "2.4.6", "torch": "2.13.0"}, ["pillow 13.0.0 is listed but not installed"]),
    ],
)
def test_the_environment_is_what_is_listed(here, said):
    assert audit.differences(LISTED, here, audit.OWN | {"nvidia-cublas"}) == said


def test_the_lists_are_read():
    text = (Path(audit.ROOT) / "constraints.txt").read_text(encoding="utf-8")
    assert len(audit.pins(text)) == sum("==" in line for line in text.splitlines())
    assert audit.pins("# x\nPyYAML==6.0.3\nzope.a_b==1.0\n") == {
        "pyyaml": "6.0.3",
        "zope-a-b": "1.0",
    }
    assert audit.accepted("# why\nGHSA-1  not used here\n\n") == {"GHSA-1"}
    with pytest.raises(ValueError, match="without a reason"):
        audit.accepted("GHSA-1\n")
    audit.accepted((audit.ROOT / "tests" / "audit-accepted.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("found", "accepted", "code", "said"),
    [
        ({}, "", 0, "asked for known vulnerabilities"),
        (None, "", 0, "NOT asked for known vulnerabilities"),
        ({"numpy": ["GHSA-1"]}, "", 1, "numpy 2.4.6 has GHSA-1"),
        ({"numpy": ["GHSA-1"]}, "GHSA-1 a file is never read with it\n", 0, "is what constraints"),
    ],
)
def test_what_is_known_fails_unless_accepted(
    tmp_path, monkeypatch, capsys, found, accepted, code, said
):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "audit-accepted.txt").write_text(accepted)
    (tmp_path / "constraints.txt").write_text("".join(f"{n}=={v}\n" for n, v in LISTED.items()))
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "installed", lambda: LISTED)
    monkeypatch.setattr(
        audit.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 0})
    )
    monkeypatch.setattr(audit, "pinned_by_others", set)
    monkeypatch.setattr(audit, "vulnerabilities", lambda listed: found)
    assert audit.main() == code
    assert said in capsys.readouterr().out
