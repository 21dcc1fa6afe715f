"""Names of the headers that policies read and write."""

import re
from typing import Annotated

from pydantic import AfterValidator

TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
"""What HTTP allows (RFC 9110, 5.6.2)."""


def header_name(name: str) -> str:
    """`name`, if a header can have it. Raises ValueError."""
    if not TOKEN.fullmatch(name):
        raise ValueError("not a valid header name")
    return name


HeaderRead = Annotated[str, AfterValidator(lambda name: name and header_name(name))]
"""A header of the request; "" is none."""
