"""Pages for people; so far the one on which a set-up link or an invitation is taken."""
