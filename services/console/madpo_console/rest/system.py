"""`/api`: who asks, what can be asked, and how to let a browser in."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from madpo.jobs.registry import KINDS
from madpo.losses.registry import METHODS
from madpo_console.callers import Asking
from madpo_console.sessions import CODE_S

router = APIRouter(prefix="/api", tags=["system"])


@router.get("/caller")
def get_caller(asking: Asking) -> dict[str, Any]:
    """Whose token it is, and what it may do."""
    return asdict(asking.caller)


@router.get("/server")
def get_server(asking: Asking) -> dict[str, Any]:
    """The gateway behind this console."""
    return {"gateway": asking.client.server, **asdict(asking.client.server_info())}


@router.get("/kinds")
def list_kinds() -> dict[str, Any]:
    """The kinds of jobs, each with the JSON schema of its spec."""
    return {name.value: kind.spec.model_json_schema() for name, kind in KINDS.items()}


@router.get("/methods")
def list_methods() -> list[str]:
    """The methods of policy trainings; docs/methods.md describes them."""
    return sorted(METHODS)


@router.post("/login-codes", status_code=201)
def create_login_code(request: Request, asking: Asking) -> dict[str, Any]:
    """A code that lets one browser in, once, with the token of this call."""
    code = request.app.state.sessions.issue_code(asking.token)
    return {"code": code, "path": f"/login?code={code}", "lasts_s": CODE_S}
