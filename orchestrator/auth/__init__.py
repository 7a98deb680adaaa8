"""Who is calling, what proves it, and what they may do.

- principals: `authenticate` gives one Principal for whatever a request carries
- keys: keys of agents; tokens: JWT and refresh tokens; passwords: Argon2id, off the loop
- agents, users, logins, audit: their routes
"""

from . import agents, audit, logins, users
from .principals import SYSTEM_AGENT, Authenticator, authenticate, require
from .tokens import refuse_missing_secret

__all__ = [
    "ENDPOINTS",
    "SYSTEM_AGENT",
    "Authenticator",
    "authenticate",
    "refuse_missing_secret",
    "require",
]

ENDPOINTS = [*logins.ENDPOINTS, *users.ENDPOINTS, *agents.ENDPOINTS, *audit.ENDPOINTS]
