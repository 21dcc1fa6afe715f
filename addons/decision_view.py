"""The decision record as a content view: mitmweb and mitmproxy list it as "AI routing"."""

import yaml
from mitmproxy import contentviews, http

from addons.exchange import METADATA


class DecisionView(contentviews.Contentview):
    """Why a request went where it went, as YAML, in place of its body."""

    name = "AI routing"
    syntax_highlight = "yaml"

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:
        """Give the record. Raises ValueError for a flow that the balancer did not see."""
        flow = metadata.flow
        if not isinstance(flow, http.HTTPFlow) or METADATA not in flow.metadata:
            raise ValueError("the balancer has not seen this request")
        return str(yaml.safe_dump(flow.metadata[METADATA], sort_keys=False, allow_unicode=True))

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:
        """Chosen by people only: by itself a body is shown as what it is."""
        return 0 if metadata.flow is not None and METADATA in metadata.flow.metadata else -1
