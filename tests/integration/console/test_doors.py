"""Who is let in, by what, and from where."""

import json

import pytest

from madpo.types import Caller, Role
from madpo_client import Client
from madpo_client.console_link import console_link
from madpo_client.embedded import EmbeddedStack
from tests.integration.console.site import Site


def test_a_link_lets_one_browser_in_once(site: Site, stack: EmbeddedStack) -> None:
    link = stack.console_link()
    assert link is not None
    path = link.removeprefix(site.url)

    let_in = site.ask("GET", path, headers={})
    again = site.ask("GET", path, headers={})

    cookie = let_in.headers["set-cookie"]
    assert (let_in.status, let_in.headers["location"]) == (303, "/")
    assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"))
    assert (again.status, "used before" in again.text, "set-cookie" in again.headers) == (401, True, False)
    caller = site.ask("GET", "/api/caller", headers={"Cookie": cookie.partition(";")[0]}).json()
    assert caller == {"name": "operator", "role": "admin"}


def test_a_token_lets_in_and_logging_out_ends_it(site: Site) -> None:
    origin = {"Origin": site.url, "Content-Type": "application/x-www-form-urlencoded"}
    wrong = site.ask("POST", "/login", headers=origin, body="token=wrong-wrong-wrong-wrong&next=/jobs")
    let_in = site.ask("POST", "/login", headers=origin, body=f"token={site.token}&next=//evil.example/")
    cookie = {"Cookie": let_in.headers["set-cookie"].partition(";")[0]}

    assert (wrong.status, "set-cookie" in wrong.headers) == (401, False)
    assert (let_in.status, let_in.headers["location"]) == (303, "/")
    assert site.ask("GET", "/jobs", headers=cookie).status == 200
    assert site.ask("POST", "/logout", headers=cookie | {"Origin": site.url}).status == 303
    shut = site.ask("GET", "/jobs?state=FAILED", headers=cookie | {"Accept": "text/html"})
    assert (shut.status, shut.headers["location"]) == (303, "/login?next=%2Fjobs%3Fstate%3DFAILED")


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
def test_another_site_changes_nothing_through_a_browser(site: Site, origin: str | None) -> None:
    headers = {"Cookie": site.cookie()} | ({} if origin is None else {"Origin": origin})

    for path in ("/api/login-codes", "/jobs/@last/cancel", "/api/jobs/@last/cancel", "/logout"):
        refused = site.ask("POST", path, headers=headers)
        assert (refused.status, refused.json()["error"]["kind"]) == (403, "PermissionDeniedError")


def test_only_names_of_its_own_are_answered(site: Site) -> None:
    assert site.ask("GET", "/health", headers={"Host": "evil.example"}).status == 400
    assert site.ask("GET", "/health", headers={"Host": "localhost:1"}).status == 200


def test_nothing_is_told_without_a_token(site: Site) -> None:
    document = site.ask("GET", "/api/openapi.json").json()
    paths = [
        (method.upper(), path.replace("{name}", "x"))
        for path, methods in document["paths"].items()
        for method in methods
        if path not in ("/api/kinds", "/api/methods")
    ]

    assert len(paths) > 30
    for method, path in paths:
        refused = site.ask(method, path.replace("{", "").replace("}", ""), headers={})
        assert refused.status == 401, (method, path, refused.text)


def test_pages_load_nothing_from_elsewhere(site: Site) -> None:
    page = site.ask("GET", "/jobs", headers={"Cookie": site.cookie()})

    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert site.ask("GET", "/static/console.js", headers={}).headers["cache-control"] == "public, max-age=3600"
    assert site.ask("GET", "/static/../app.py", headers={}).status == 404


def test_nothing_of_an_upload_is_read_before_it_is_known_who_asks(site: Site) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {site.token}"}
    for path in ("/v1/files", "/api/datasets"):
        stranger = site.ask("POST", path, headers={**form, "Authorization": "Bearer nobody-at-all"}, body="no form")
        empty = site.ask("POST", path, headers=form, body="--x--\r\n")
        assert (stranger.status, empty.status) == (401, 400), path


def test_the_document_says_what_an_upload_brings(site: Site) -> None:
    paths = site.ask("GET", "/api/openapi.json").json()["paths"]

    for path, fields in (("/v1/files", ["file", "purpose"]), ("/api/datasets", ["file"])):
        body = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]
        assert body["schema"]["required"] == fields, path


def test_a_body_that_is_too_large_is_not_read_to_its_end(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token}", "Content-Type": "application/json"}

    refused = site.ask("POST", "/api/jobs/calibration", headers=headers, body=b" " * 2_000_000)

    assert (refused.status, "at most 1048576 bytes" in refused.json()["error"]["message"]) == (413, True)


def test_what_people_type_ends_in_no_failure(site: Site) -> None:
    origin = {"Origin": site.url, "Content-Type": "application/x-www-form-urlencoded"}
    cookie = {"Cookie": site.cookie(), "Accept": "text/html"}

    assert site.ask("POST", "/login", headers=origin, body="token=t%C3%B6k").status == 401
    assert site.ask("GET", "/jobs?kind=POLICY_TRAINING&state=nothing", headers=cookie).status == 200
    wrong = site.ask("GET", "/jobs?shown=-1", headers=cookie)
    assert (wrong.status, "shown" in wrong.text) == (400, True)
    poll = site.ask("GET", "/jobs", headers={"HX-Request": "true", "Accept": "text/html"})
    assert (poll.status, poll.headers["hx-redirect"]) == (401, "/login")


def test_a_token_goes_through_no_proxy_and_follows_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)

    assert console_link(site.url, site.token).startswith(site.url)


def test_an_error_says_as_much_over_http(site: Site) -> None:
    spec = json.dumps({"model": "model-" + "0" * 32, "dataset": "dataset-" + "0" * 32, "training": {"epoch": 1}})
    headers = {"Authorization": f"Bearer {site.token}", "Content-Type": "application/json"}

    wrong = site.ask("POST", "/api/jobs/supervised_training", headers=headers, body=spec)
    missing = site.ask("GET", "/api/jobs/job-" + "0" * 32)

    assert (wrong.status, wrong.json()["error"]["violations"][0]["field"]) == (400, "training.epoch")
    assert (missing.status, missing.json()["error"]["kind"]) == (404, "NotFoundError")


def test_a_link_is_had_from_any_console(site: Site, client: Client) -> None:
    assert console_link(site.url, site.token).startswith(f"{site.url}/login?code=")
    assert client.access.caller() == Caller("operator", Role.ADMIN)
