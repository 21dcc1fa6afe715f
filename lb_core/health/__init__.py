"""Which endpoints may be given requests: outlier ejection, rest, slow start, panic, active checks."""

from lb_core.health.attempt import Attempt, Work
from lb_core.health.checks import Checker
from lb_core.health.config import ChecksConfig, HealthConfig
from lb_core.health.fleet import Alone, Fleet, News
from lb_core.health.member import Change, State
from lb_core.health.monitor import Health
from lb_core.health.selection import Eligibility
from lb_core.health.verdict import IGNORED, SUCCESS, Kind, Verdict, judge, rest_seconds

__all__ = [
    "IGNORED",
    "SUCCESS",
    "Alone",
    "Attempt",
    "Change",
    "Checker",
    "ChecksConfig",
    "Eligibility",
    "Fleet",
    "Health",
    "HealthConfig",
    "Kind",
    "News",
    "State",
    "Verdict",
    "Work",
    "judge",
    "rest_seconds",
]
