from hypothesis import settings

# A shared machine may pause at any time, so slow examples prove nothing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
