"""What needs mitmproxy: the balancer's addon and the simulated engines."""
