from hypothesis import settings

# A shared machine pauses as it likes, which says nothing of the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
