"""Pages for people, rendered here and refreshed by htmx; plots are drawn by uPlot. Both lie in `static`, unchanged."""

from fastapi import APIRouter

from madpo_console.pages import datasets, home, jobs, login, models

router = APIRouter(include_in_schema=False)
for _page in (home, jobs, datasets, models, login):
    router.include_router(_page.router)
