"""Properties here have no deadline: a busy machine is no counterexample. Costs are asserted where they matter."""

from hypothesis import settings

settings.register_profile("edge", deadline=None)
settings.load_profile("edge")
