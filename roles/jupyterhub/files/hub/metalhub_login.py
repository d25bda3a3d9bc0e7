"""A login lasts as long as Keycloak's session, and a computation does not depend on it.

The hub asks Keycloak again every few minutes, so who left a group loses what came with it. Reports of servers are
no use of a login: refused, they would make a busy server look idle, and the culler would stop it. Logging out of the
hub ends Keycloak's session too, so the next person at the same computer is asked for a password.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from jupyterhub.apihandlers.users import ActivityAPIHandler
from metalhub_access import Authorize
from oauthenticator.generic import GenericOAuthenticator
from oauthenticator.oauth2 import OAuthLogoutHandler
from tornado import web
from tornado.httpclient import HTTPClientError


class Activity(ActivityAPIHandler):  # type: ignore[misc]  # (the hub's packages are no part of the driver's environment)
    """What servers tell the hub: that they are in use."""

    async def refresh_auth(self, user: Any, force: bool = False) -> Any:  # noqa: ARG002
        """Take the server's token as it is; neither the login's end nor a silent Keycloak stops a report."""
        return user


class Logout(OAuthLogoutHandler):  # type: ignore[misc]
    """The hub's logout, which leaves servers alone."""

    async def handle_logout(self) -> None:
        """End Keycloak's session after the hub's."""
        await super().handle_logout()
        user = self.current_user
        # A login that could not be confirmed is forgotten as well.
        self.clear_login_cookie()
        if user is not None:
            await self.authenticator.end_session(user)


class Authenticator(GenericOAuthenticator):  # type: ignore[misc]
    """Keycloak, asked as OpenID Connect says, and told when somebody leaves."""

    logout_handler = Logout

    def get_handlers(self, app: Any) -> list[tuple[str, Any]]:
        """Return our handlers before the hub's, so they are found first."""
        ours = [(r"/api/users/([^/]+)/activity", Activity), (r"/api/oauth2/authorize", Authorize)]
        return [*ours, *super().get_handlers(app)]

    async def end_session(self, user: Any) -> None:
        """End the user's session at Keycloak by the token that would prolong it."""
        state = await user.get_auth_state()
        token = (state or {}).get("refresh_token")
        if not token:
            return
        form = self.build_refresh_token_request_params(token)
        del form["grant_type"]
        try:
            await self.httpfetch(
                f"{self.token_url.rsplit('/', 1)[0]}/logout",
                label="ending the session",
                parse_json=False,
                method="POST",
                headers=self.build_token_info_request_headers(),
                body=urlencode(form).encode(),
                validate_cert=self.validate_server_cert,
            )
        except (HTTPClientError, OSError) as error:
            # Keycloak knows the token no more: the session has ended before.
            if isinstance(error, HTTPClientError) and 400 <= error.code < 500:
                return
            self.log.error("Keycloak did not end the session of %s: %s", user.name, error)
            text = (
                "You are logged out of the hub, but single sign-on did not answer. Close the browser to end that too."
            )
            raise web.HTTPError(502, text) from error


def configure(config: Any) -> None:
    """Put our authenticator in the place of the one it extends; its settings are read by both."""
    config.JupyterHub.authenticator_class = Authenticator
