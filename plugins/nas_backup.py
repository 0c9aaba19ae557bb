"""Registers the page with Airflow: under "NAS Backup" in the navigation, and as links on DAG runs and task instances.

Every component of Airflow imports this file, and only the api-server serves the page: it is made at its first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode, urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.bases.operatorlink import BaseOperatorLink
from airflow.sdk.configuration import conf

if TYPE_CHECKING:
    from nasbackup.catalog import Database

PREFIX = "/nasbackup"
NAME = "NAS Backup"
ROUTE = "nas-backup"
DAG_PREFIX = "nas_"
BASE = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
"""Below which Airflow is served, when it shares its host with others."""


def _create() -> Any:
    """Who may read the DAG ``nas_backup`` may see the page; who may trigger a DAG gets the button for it."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
    from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
    from airflow.models.dag import DagModel
    from fastapi import Depends
    from nasbackup.web import forms
    from nasbackup.web.app import Guards, create

    def triggers(user: Any = Depends(get_user)) -> frozenset[str]:  # noqa: B008 (as FastAPI wants it)
        return frozenset(
            dag_id
            for dag_id in forms.TRIGGERED
            if get_auth_manager().is_authorized_dag(
                method="POST",
                access_entity=DagAccessEntity.RUN,
                details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
                user=user,
            )
        )

    view = requires_access_dag("GET", param_dag_id=forms.BACKUP)
    return create(database=_catalog, guards=Guards(view=view, triggers=triggers))


def _catalog() -> Database:
    from airflow.exceptions import AirflowNotFoundException
    from airflow.models import Connection
    from nasbackup.airflow.hooks import CATALOG_CONNECTION, catalog_of, no_catalog

    try:
        connection = Connection.get_connection_from_secrets(CATALOG_CONNECTION)
    except AirflowNotFoundException as error:
        raise no_catalog() from error
    return catalog_of(connection)


class Lazy:
    """An application that is made when it is first asked for something."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.app is None:
            self.app = _create()
        await self.app(scope, receive, send)


class BackupLink(BaseOperatorLink):
    """On the task instances of our DAGs, mapped ones too; others have no such link."""

    name = NAME

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        if not ti_key.dag_id.startswith(DAG_PREFIX):
            return ""
        query = urlencode({"dag_id": ti_key.dag_id, "run_id": ti_key.run_id})
        return f"{BASE}/plugin/{ROUTE}{PREFIX}/runs?{query}"


class NasBackupPlugin(AirflowPlugin):
    name = "nas_backup"
    fastapi_apps: ClassVar[list[Any]] = [{"app": Lazy(), "url_prefix": PREFIX, "name": NAME}]
    external_views: ClassVar[list[Any]] = [
        {
            "name": NAME,
            "href": f"{BASE}{PREFIX}/",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": ROUTE,
            "icon": f"{BASE}{PREFIX}/static/icon.svg",
            "icon_dark_mode": f"{BASE}{PREFIX}/static/icon-dark.svg",
        },
        {
            "name": NAME,
            "href": f"{BASE}{PREFIX}/runs?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": f"{ROUTE}-run",
            "icon": f"{BASE}{PREFIX}/static/icon.svg",
            "icon_dark_mode": f"{BASE}{PREFIX}/static/icon-dark.svg",
        },
    ]
    global_operator_extra_links: ClassVar[list[Any]] = [BackupLink()]
