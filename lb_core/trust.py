"""Which certificates of endpoints hold, for whatever the balancer itself asks them over https."""

import ssl
from functools import cache

import certifi

from lb_core.errors import ConfigError, Problem


@cache
def trusting(
    *, ca_file: str | None = None, ca_dir: str | None = None, insecure: bool = False
) -> ssl.SSLContext:
    """What checks certificates as mitmproxy does that passes the requests on.

    `ca_file` and `ca_dir` (as c_rehash makes it) hold the certificates to trust; without both it is those of
    certifi. `insecure` takes any certificate. Raises ConfigError where they cannot be loaded.

    Made once: that takes 20 to 50 ms, which is long for the event loop.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if ca_file is None and ca_dir is None:
        ca_file = certifi.where()
    try:
        context.load_verify_locations(ca_file, ca_dir)
    except OSError as error:
        why = f"the certificates to trust cannot be loaded: {error.strerror}"
        raise ConfigError("ssl_verify_upstream_trusted_ca", (Problem("", why),)) from error
    return context
