"""What is no fault of a configuration and may surprise all the same."""

from lb_core.config.model import Config


def warnings(config: Config) -> tuple[str, ...]:
    """One line for each endpoint that another cluster has too."""
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
    return tuple(lines)
