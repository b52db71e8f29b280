import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.launch.ray.jobs_api import JobsApi, resolved_address


class Answer(http.server.BaseHTTPRequestHandler):
    """Somebody who is no Ray: tells the header it was asked with, or that it is not there."""

    def do_GET(self) -> None:
        self.send_response(404 if "unknown" in self.path else 500)
        self.end_headers()
        token = self.headers.get("Authorization")
        self.wfile.write(f"Traceback:\n  File x\nValueError: asked with {token}\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name there
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://head:8265", "http://head:8265"),
        ("https://head/ray/", "https://head/ray"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("auto", "http://127.0.0.1:8265"),
    ],
)
def test_an_address_of_the_jobs_api_is_taken(given: str, meant: str) -> None:
    assert resolved_address(given) == meant


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("ray://head:10001", "one of Ray Client; .*: http://head:8265$"),
        ("head:8265", "expected the form http://HEAD:8265, got 'head:8265'"),
        ("http://", "expected the form"),
        ("http://head:0", "expected the form"),
        ("http://head:99999", "expected the form"),
        ("file:///etc/passwd", "expected the form"),
        ("http://kim:secret@head:8265", "expected no user name or password"),
    ],
)
def test_another_address_is_refused(given: str, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^ray\\.address: .*{complaint}"):
        resolved_address(given)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(InputError) as refused:
        resolved_address("http://kim:secret@head:8265")
    assert "secret" not in str(refused.value)


def test_the_address_comes_from_rays_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://second:1")
    assert resolved_address(None) == "http://second:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://first:1")
    assert resolved_address(None) == "http://first:1"
    assert resolved_address("http://given:1") == "http://given:1"


def test_a_refusal_holds_the_clusters_last_words(address: str) -> None:
    with pytest.raises(InputError) as refused:
        JobsApi(address, environment={}).jobs()
    assert str(refused.value) == (
        f"Ray at {address} refused (HTTP 500): ValueError: asked with None"
    )


def test_what_is_not_found_is_none(address: str) -> None:
    api = JobsApi(address, environment={})
    assert api.job("unknown") is None
    assert not api.has_package("gcs://unknown.zip")


def test_a_token_is_sent_where_tokens_are_on(address: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    path = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    for environment, sent in (
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "def"}, "Bearer def"),
        (path, "Bearer abc"),
        ({"RAY_AUTH_TOKEN": "def"}, "None"),
    ):
        with pytest.raises(InputError, match=f"asked with {sent}$"):
            JobsApi(address, environment=environment).jobs()


@pytest.mark.parametrize("token", ["a b", "a\nX-Header: b", "é"])
def test_a_token_that_is_no_header_is_refused(address: str, token: str) -> None:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN: expected printable characters"):
        JobsApi(address, environment=environment).jobs()


def test_a_missing_token_is_said(address: str, tmp_path: Path) -> None:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    with pytest.raises(InputError, match=r"there is none to read in .*none"):
        JobsApi(address, environment=environment).jobs()
