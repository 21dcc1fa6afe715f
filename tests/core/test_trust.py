"""Whom checks and visits believe, against a real server whose certificate is of a CA of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from OpenSSL import crypto

from lb_core.config import loads
from lb_core.errors import ConfigError
from lb_core.health import State
from lb_core.runtime import Runtime
from lb_core.trust import trusting
from tests.core.site import PAGE, Site, private_tls, response, says
from tests.waiting import until


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A page by https; the CA is `private-ca-cert.pem` in `tmp_path`."""
    async with Site(says(response(PAGE)), tls=private_tls(tmp_path)) as site:
        yield site


def runtime_of(site: Site) -> Runtime:
    cluster = {
        "endpoints": [{"url": f"https://127.0.0.1:{site.port}", "name": "e0"}],
        "metrics": {"scrape_interval": 0.1},
        "health": {"checks": {"interval_s": 0.1}},
    }
    return Runtime(loads(yaml.safe_dump({"clusters": {"c": cluster}})))


def believed(runtime: Runtime) -> tuple[bool, bool]:
    """Whether the checks get through to the endpoint, and the visits of its page."""
    cluster = runtime.clusters["c"]
    return cluster.health.states()["e0"] is State.HEALTHY, bool(cluster.board.observations(["e0"]))


async def test_checks_and_visits_follow_the_trust_that_they_are_given_and_its_changes(
    site: Site, tmp_path: Path
) -> None:
    runtime = await runtime_of(site).start()
    await until(lambda: believed(runtime) == (False, False), "nobody vouches for the endpoint")
    runtime.trust(trusting(ca_file=str(tmp_path / "private-ca-cert.pem")))
    await until(lambda: believed(runtime) == (True, True), "its CA is trusted")
    await runtime.close()


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("how", ["a file", "a folder", "no matter whom"])
async def test_trust_is_given_before_the_start_by_whatever_mitmproxy_takes(
    site: Site, tmp_path: Path, how: str
) -> None:
    authority = tmp_path / "private-ca-cert.pem"
    if how == "a file":
        tls = trusting(ca_file=str(authority))
    elif how == "a folder":
        loaded = crypto.load_certificate(crypto.FILETYPE_PEM, authority.read_bytes())
        (tmp_path / f"{loaded.subject_name_hash():08x}.0").write_bytes(authority.read_bytes())
        tls = trusting(ca_dir=str(tmp_path))
    else:
        tls = trusting(insecure=True)
    runtime = runtime_of(site)
    runtime.trust(tls)
    await runtime.start()
    await until(lambda: believed(runtime)[1], "the page is read")
    assert believed(runtime)[0]
    await runtime.close()


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_that_vouches_for_nobody_is_told(tmp_path: Path, text: str | None) -> None:
    authority = tmp_path / "ca.pem"
    if text is not None:
        authority.write_text(text)
    with pytest.raises(ConfigError, match="the certificates to trust cannot be loaded"):
        trusting(ca_file=str(authority))
