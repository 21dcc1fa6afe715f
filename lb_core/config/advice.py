"""What is no fault of a configuration and may surprise all the same."""

from lb_core.config.model import Config
from lb_core.config.policy import services


def warnings(config: Config) -> tuple[str, ...]:
    """One line for each endpoint that another cluster has too, and each cluster that cannot serve."""
    first: dict[tuple[str, int], tuple[str, str]] = {}
    lines = []
    for cluster in config.clusters.values():
        for endpoint in (*cluster.endpoints, *(dns.template for dns in cluster.dns)):
            name, owner = first.setdefault(
                (endpoint.server_name or endpoint.host, endpoint.port), (endpoint.name, cluster.name)
            )
            if owner != cluster.name:
                lines.append(
                    f"'{endpoint.name}' of cluster '{cluster.name}' has the address of '{name}' of cluster"
                    f" '{owner}': each cluster counts its own requests, limits and health are per cluster"
                )
    used = {
        name
        for route in config.routes
        for name in ([route.cluster] if route.cluster else services(route.policy or config.default_policy))
    }
    lines += [
        f"cluster '{name}' has no endpoint and no endpoints_file: its requests get 503"
        for name, cluster in config.clusters.items()
        if name in used and not (cluster.endpoints or cluster.dns or cluster.endpoints_file)
    ]
    return tuple(lines)
