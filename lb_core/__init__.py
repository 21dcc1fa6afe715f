"""The balancer's core. It knows nothing of mitmproxy: usable, testable and simulatable without a proxy."""
