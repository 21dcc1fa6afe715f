"""What the engines say about themselves: scraped pages → `EngineMetrics`, and what follows from them.

The way of a page: `scraper` (a thread) has `fetch` get it, `reading` reads it with `series` (lines → numbers)
and `dialects` (vendors' names → ours), and the event loop's `board` keeps it, with `watch` for the state of
each engine. `model` holds the values. Nothing here knows endpoints, policies or the proxy.
"""
