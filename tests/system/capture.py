"""Record the flows of `tests/data/captured.mitm` anew: `python -m tests.system.capture`.

Twelve requests of every API and shape, streamed and not, through a balancer to three simulated engines.
"""

import tempfile
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.system.balancer import ROOT, Balancer, Engines

CAPTURED = ROOT / "tests" / "data" / "captured.mitm"
REQUESTS = 12


def main() -> None:
    """Write the file."""
    CAPTURED.unlink(missing_ok=True)
    options = ("--set", "store_streamed_bodies=true", "-w", str(CAPTURED))
    with tempfile.TemporaryDirectory() as folder, Engines(3) as engines:
        config = {
            "clusters": {"engines": {"endpoints": engines.endpoints()}},
            "routes": [{"name": "api", "match": {"hosts": "localhost"}, "cluster": "engines"}],
            "lb_policy": "global_least_request",
        }
        with (
            Balancer(Path(folder), config, *options) as balancer,
            OpenAI(base_url=f"http://localhost:{balancer.port}/v1", api_key="none") as client,
        ):
            for number in range(3):
                messages: Any = [{"role": "user", "content": f"turn {number}"}]
                for _ in client.chat.completions.create(model="sim", messages=messages, stream=True):
                    pass
                client.chat.completions.create(model="sim", messages=messages)
            client.completions.create(model="sim", prompt="a prompt")
            client.embeddings.create(model="sim", input="a text", encoding_format="float")
            client.responses.create(model="sim", input="a question")
            client.models.list()
            for _ in client.completions.create(model="sim", prompt="another", stream=True):
                pass
            client.models.list()


if __name__ == "__main__":
    main()
