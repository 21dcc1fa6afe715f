"""Loaded into the pytest of each mutation: a failure need not be made small, and must come each time."""

from hypothesis import Phase, settings

settings.register_profile("mutations", phases=(Phase.explicit, Phase.generate), derandomize=True)
settings.load_profile("mutations")
