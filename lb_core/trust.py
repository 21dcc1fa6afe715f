"""Which certificates of endpoints hold, for whatever the balancer itself asks them over https."""

import ssl
from functools import cache

import certifi


@cache
def trusting() -> ssl.SSLContext:
    """What checks a certificate, made once: that takes 20 to 50 ms of the event loop.

    It trusts what mitmproxy trusts when it passes requests on.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certifi.where())
    return context
