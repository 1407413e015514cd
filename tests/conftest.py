from hypothesis import settings

# no test is timed: how fast a shared machine runs says nothing of the code
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
